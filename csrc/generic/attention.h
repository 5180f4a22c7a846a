// Attention over the paged cache, over the vector type `Vec` of the file that includes this.
//
// All rows (key head, query, head of its group) of a task walk the context together from its beginning, in
// splits of kSplit tokens and within a split in tiles of kKeys: a row's bits depend on its own query and
// context, never on the other rows. Each split has its own softmax; splits are merged in order.
//
// A tile's keys and values of a key head (of 64: 16 KiB in float32) stay in the L1 cache for all of a
// prompt's queries, with their scores, and the multiplier bounds them. One query a sequence: a task has up to
// eight key heads; where several queries share one (128 KiB, in the L2 cache), or each has its own
// (single_query.h), reading the keys and values bounds it, and the next tile is prefetched.
#pragma once

#include <cstring>

#include "csrc/generic/exponential.h"
#include "csrc/generic/key_tile.h"
#include "csrc/generic/single_query.h"
#include "csrc/generic/softmax.h"

namespace baize {

namespace {

// TaskRows of floats, `stride` apart.
template <class Float>
struct FloatRows {
    Float* at;
    size_t stride;
};

// c[r] = c[r] * kept[r] + the sum over n < count of a[r][n] * b[n], for R rows and V vectors. If kept is
// null, c starts at zero.
template <size_t R, size_t V>
BAIZE_TARGET inline void outer(FloatRows<const float> a, FloatRows<const float> b, size_t count,
                               FloatRows<float> c, const float* kept) {
    F sums[R][V];
#pragma GCC unroll 16
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v)
            sums[r][v] = kept ? Vec::mul(Vec::load(c.at + r * c.stride + v * Vec::width), Vec::all(kept[r]))
                              : Vec::zero();
    for (size_t n = 0; n < count; ++n) {
        F vectors[V];
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v) vectors[v] = Vec::load(b.at + n * b.stride + v * Vec::width);
#pragma GCC unroll 16
        for (size_t r = 0; r < R; ++r) {
            const F factor = Vec::all(a.at[r * a.stride + n]);
#pragma GCC unroll 4
            for (size_t v = 0; v < V; ++v) sums[r][v] = Vec::fma(vectors[v], factor, sums[r][v]);
        }
    }
#pragma GCC unroll 16
    for (size_t r = 0; r < R; ++r)
#pragma GCC unroll 4
        for (size_t v = 0; v < V; ++v) Vec::store(c.at + r * c.stride + v * Vec::width, sums[r][v]);
}

// Vectors of a register block of R rows, so that its sums fill the registers; divides kKeys and a row's
// width.
template <size_t R>
constexpr size_t vectors_for() {
    return R <= 2 ? kKeys / Vec::width : 2;
}

// The scores of rows with the tile's keys.
struct Score {
    const TaskRows& rows;
    const float* keys;
    size_t dim;
    template <size_t R>
    BAIZE_TARGET void run(size_t row) const {
        constexpr size_t V = vectors_for<R>();
        for (size_t j = 0; j < kKeys; j += V * Vec::width)
            outer<R, V>({rows.q + row * rows.width, rows.width}, {keys + j, kKeys}, dim,
                        {rows.scores + row * kKeys + j, kKeys}, nullptr);
    }
};

// Turns a row's scores of the first `seen` keys into weights.
BAIZE_TARGET void weigh_scores(const TaskRows& rows, size_t r, size_t seen, bool first) {
    float* row = rows.scores + r * kKeys;
    for (size_t n = seen; n < kKeys; ++n) row[n] = -__builtin_inff();
    F most = Vec::all(rows.now.greatest[r]), total = Vec::zero();
    for (size_t n = 0; n < kKeys; n += Vec::width) most = Vec::greater(Vec::load(row + n), most);
    const float greatest = Vec::greatest(most);
    for (size_t n = 0; n < kKeys; n += Vec::width)
        Vec::store(row + n, exponential(Vec::add(Vec::load(row + n), Vec::all(-greatest))));
    for (size_t n = seen; n < kKeys; ++n) row[n] = 0.0f;
    for (size_t n = 0; n < kKeys; n += Vec::width) total = Vec::add(total, Vec::load(row + n));
    rows.kept[r] = first ? 0.0f : exponential(rows.now.greatest[r] - greatest);
    rows.now.total[r] = rows.now.total[r] * rows.kept[r] + Vec::sum(total);
    rows.now.greatest[r] = greatest;
}

// values[r] = values[r] * kept[r] + weights[r] * the tile's values.
struct Mix {
    const TaskRows& rows;
    const float* values;
    size_t keys;
    template <size_t R>
    BAIZE_TARGET void run(size_t row) const {
        constexpr size_t V = vectors_for<R>();
        for (size_t d = 0; d < rows.width; d += V * Vec::width)
            outer<R, V>({rows.scores + row * kKeys, kKeys}, {values + d, rows.width}, keys,
                        {rows.now.values + row * rows.width + d, rows.width}, rows.kept + row);
    }
};

// Calls step.template run<R>(row) over rows [first, count).
template <class Step>
BAIZE_TARGET inline void by_rows(size_t first, size_t count, const Step& step) {
    size_t r = first;
    for (; r + 6 <= count; r += 6) step.template run<6>(r);
    for (; r + 2 <= count; r += 2) step.template run<2>(r);
    for (; r < count; ++r) step.template run<1>(r);
}

// Computes one split of the context, tokens [begin, end), into rows.now, with the key heads from `kv_head`
// on.
BAIZE_TARGET void attend_split(const Attention& a, const int32_t* table, size_t kv_head, size_t begin,
                               size_t end, const TaskRows& rows) {
    const size_t count = rows.of_head;
    for (size_t r = 0; r < count * rows.heads; ++r) {
        rows.now.greatest[r] = -__builtin_inff();
        rows.now.total[r] = 0.0f;
        std::memset(rows.now.values + r * rows.width, 0, rows.width * sizeof(float));
    }
    KeyTile tiles[2];
    tiles[0].find(a, table, begin, end, kv_head);
    size_t first = 0;  // the first row that sees the tile: rows are in the order of their limits
    for (size_t at = begin, n = 0; at < end; at += kKeys, ++n) {
        const KeyTile& tile = tiles[n % 2];
        KeyTile& next = tiles[(n + 1) % 2];
        next.find(a, table, at + kKeys, end, kv_head);
        if (count > 1) gather(a, tile, rows);
        while (first < count && rows.limits[first] <= at) ++first;
        for (size_t head = 0; head < rows.heads; ++head) {
            const size_t own = head * count;
            next.prefetch(a, head, rows.heads, rows.heads * a.head_bytes());
            if (count == 1) {
                const size_t seen = rows.limits[0] - at < tile.count ? rows.limits[0] - at : tile.count;
                score_query(a, tile, head, rows);
                weigh_scores(rows, head, seen, at == begin);
                mix_values(a, tile, head, seen, rows);
                continue;
            }
            by_rows(own + first, own + count, Score{rows, rows.keys + head * rows.width * kKeys, a.dim});
            for (size_t r = first; r < count; ++r)
                weigh_scores(rows, own + r,
                             rows.limits[r] - at < tile.count ? rows.limits[r] - at : tile.count,
                             at == begin);
            // A row is multiplied only with values that it may see: zero times an infinite value would be
            // NaN.
            for (size_t r = first, end; r < count; r = end) {
                const size_t seen = rows.limits[r] - at < tile.count ? rows.limits[r] - at : tile.count;
                for (end = r + 1; end < count && (seen == tile.count || rows.limits[end] == rows.limits[r]);)
                    ++end;
                by_rows(own + r, own + end, Mix{rows, rows.values + head * kKeys * rows.width, seen});
            }
        }
    }
}

BAIZE_TARGET void attend(const Attention& a, const Queries& what, float* parts, float* scratch) {
    const size_t first = what.first, last = what.last;
    const size_t group = a.heads / a.kv_heads;
    const size_t of_head = (what.end - what.begin) * group, count = of_head * what.kv_heads;
    const size_t length = size_t(a.lens[what.sequence]), behind = size_t(a.starts[what.sequence + 1]);
    const int32_t* table = a.tables + what.sequence * a.table_stride;
    const TaskRows rows = carve(a, of_head, what.kv_heads, scratch);
    const auto query = [&](size_t r) { return what.begin + r % of_head / group; };
    const auto head = [&](size_t r) { return (what.kv_head + r / of_head) * group + r % group; };
    for (size_t r = 0; r < of_head; ++r) rows.limits[r] = length - (behind - 1 - query(r));
    for (size_t r = 0; r < count; ++r) {
        const float* from = a.q + (query(r) * a.heads + head(r)) * a.dim;
        for (size_t d = 0; d < a.dim; ++d) rows.q[r * rows.width + d] = from[d] * a.scale;
    }
    const size_t seen = rows.limits[of_head - 1];
    // More than one split, which `before` accumulates.
    const bool several = seen > (first + 1) * kSplit && last > first + 1;
    for (size_t n = first; n < last && n * kSplit < seen; ++n) {
        const size_t stop = (n + 1) * kSplit < seen ? (n + 1) * kSplit : seen;
        attend_split(a, table, what.kv_head, n * kSplit, stop, rows);
        for (size_t r = 0; r < count && several; ++r) {
            if (rows.limits[r % of_head] <= n * kSplit) continue;
            if (n > first) {
                merge_rows(rows.before, r, rows.now, r);
            } else {
                rows.before.greatest[r] = rows.now.greatest[r];
                rows.before.total[r] = rows.now.total[r];
                std::memcpy(rows.before.values + r * rows.width, rows.now.values + r * rows.width,
                            rows.width * sizeof(float));
            }
        }
    }
    const Softmax& found = several ? rows.before : rows.now;
    for (size_t r = 0; r < count; ++r) {
        if (!parts) {
            finish_row(found, r, a.dim, a.out + (query(r) * a.heads + head(r)) * a.dim);
            continue;
        }
        const Softmax part = part_of(a, parts, query(r), head(r), first);
        *part.greatest = found.greatest[r];
        *part.total = found.total[r];
        std::memcpy(part.values, found.values + r * rows.width, rows.width * sizeof(float));
    }
}

constexpr AttentionKernels kAttention{.attend = attend, .merge = merge, .scratch = attention_scratch};

}  // namespace

}  // namespace baize
