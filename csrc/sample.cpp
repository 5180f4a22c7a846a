// Sampling without a sort: top_k, top_p and min_p each keep the logits above a threshold, which is found by
// counting in buckets, and again in the bucket where it lies. Blocks of kBestBlock logits whose greatest is
// below it are skipped.
#include "csrc/sample.h"

#include <algorithm>
#include <cfloat>
#include <cmath>
#include <cstring>
#include <stdexcept>
#include <string>

namespace baize {

namespace {

constexpr size_t kFew = 24;  // so few values are sorted, not counted

// The greatest t such that the values x >= t have a total weight of `wanted`; the smallest value if all
// together have less. Without `weights` each value weighs 1. Destroys x and weights.
float reach(float* x, double* weights, size_t count, double wanted) {
    constexpr size_t buckets = 256;
    double above = 0.0;  // weight of the values above those that are left
    while (count > kFew) {
        const auto [least, greatest] = std::minmax_element(x, x + count);
        const double low = *least, range = double(*greatest) - low;
        if (range == 0.0) break;
        const double scale = double(buckets - 1) / range;
        const auto bucket = [=](float value) {
            return std::min(buckets - 1, size_t((double(value) - low) * scale));
        };
        double sums[buckets] = {};
        for (size_t i = 0; i < count; ++i) sums[bucket(x[i])] += weights ? weights[i] : 1.0;
        size_t here = buckets - 1;
        while (here > 0 && above + sums[here] < wanted) above += sums[here--];
        size_t left = 0;
        for (size_t i = 0; i < count; ++i) {
            if (bucket(x[i]) != here) continue;
            x[left] = x[i];
            if (weights) weights[left] = weights[i];
            ++left;
        }
        if (left == 0) return *std::min_element(x, x + count);  // unreached: the weights left are zero
        count = left;
    }
    if (count > kFew) return x[0];  // all equal
    for (size_t i = 1; i < count; ++i) {  // the greatest first
        const float value = x[i];
        const double weight = weights ? weights[i] : 1.0;
        size_t at = i;
        for (; at > 0 && x[at - 1] < value; --at) {
            x[at] = x[at - 1];
            if (weights) weights[at] = weights[at - 1];
        }
        x[at] = value;
        if (weights) weights[at] = weight;
    }
    for (size_t i = 0; i + 1 < count; ++i) {
        above += weights ? weights[i] : 1.0;
        if (above >= wanted) return x[i];
    }
    return x[count - 1];
}

// A row while its token is chosen. `greatest`: the greatest logit of each block, scaled.
struct Row {
    const SampleKernels& kernels;
    const float* logits;
    size_t vocabulary, blocks;
    float temperature, top;
    const float* greatest;

    // Writes a block's logits divided by the temperature; returns their number.
    size_t scaled(size_t block, float* x) const {
        const size_t begin = block * kBestBlock, count = std::min(kBestBlock, vocabulary - begin);
        kernels.scale(logits + begin, count, temperature, x);
        return count;
    }

    // Writes the scaled logits that are at least `floor` to `found`; returns their number.
    size_t gather(float floor, float* found) const {
        size_t count = 0;
        float x[kBestBlock];
        for (size_t block = 0; block < blocks; ++block) {
            if (greatest[block] < floor) continue;
            const size_t size = scaled(block, x);
            for (size_t i = 0; i < size; ++i) {
                found[count] = x[i];
                count += x[i] >= floor;
            }
        }
        return count;
    }

    // The total weight of all logits.
    double mass(float* x) const {
        double total = 0.0;
        for (size_t block = 0; block < blocks; ++block)
            if (greatest[block] > top - 25.0f) total += kernels.weigh(x, scaled(block, x), top, nullptr);
        return total;
    }
};

// The smallest scaled logit that may be drawn. `x` and `weights` have room for the vocabulary.
float threshold(const Row& row, int64_t top_k, float top_p, float min_p, float* x, double* weights) {
    float floor = -FLT_MAX;
    size_t count = 0;  // values in x, if it holds the logits of at least the floor
    if (top_k > 0 && size_t(top_k) < row.vocabulary) {
        // top_k blocks with a greatest of at least t have top_k logits of at least t.
        if (size_t(top_k) <= row.blocks) {
            std::memcpy(x, row.greatest, row.blocks * sizeof(float));
            floor = reach(x, nullptr, row.blocks, double(top_k));
        }
        const size_t all = row.gather(floor, x);
        float* copy = reinterpret_cast<float*>(weights);
        std::memcpy(copy, x, all * sizeof(float));
        floor = reach(copy, nullptr, all, double(top_k));
        for (size_t i = 0; i < all; ++i) {
            x[count] = x[i];
            count += x[i] >= floor;
        }
    }
    if (top_p < 1.0f) {
        double total;
        if (count) {
            total = row.kernels.weigh(x, count, row.top, weights);
        } else {
            total = row.mass(x);
            // Logits below this floor, however many, together weigh less than what top_p leaves out.
            const double rest = std::max(total - double(top_p) * total, 1e-30) / double(row.vocabulary);
            count = row.gather(float(double(row.top) + std::log(rest) - 0.001), x);
            row.kernels.weigh(x, count, row.top, weights);
        }
        floor = std::max(floor, reach(x, weights, count, double(top_p) * total));
    }
    if (min_p > 0.0f) {
        const double least = double(row.top) + std::log(double(min_p));
        float rounded = float(least);
        if (double(rounded) < least) rounded = std::nextafter(rounded, FLT_MAX);
        floor = std::max(floor, rounded);
    }
    return floor;
}

double noise(uint32_t bits) { return -std::log(-std::log((double(bits) + 0.5) * 0x1p-23)); }

}  // namespace

size_t sample_scratch(const Sample& what) {
    const size_t whole = what.blocks() * kBestBlock;
    return (what.blocks() + 15) / 16 * 16 + whole + whole * sizeof(double) / sizeof(float);
}

void sample(const Sample& what, const SampleKernels& kernels, size_t n, float* scratch) {
    const size_t blocks = what.blocks(), whole = blocks * kBestBlock;
    const float* logits = what.logits + n * what.vocabulary;
    float *greatest = scratch, *x = scratch + (blocks + 15) / 16 * 16;
    double* weights = reinterpret_cast<double*>(x + whole);
    bool finite = true;
    if (what.best) {
        for (size_t block = 0; block < blocks; ++block) {
            const int32_t id = what.best[n * blocks + block];
            finite = finite && id >= 0;
            greatest[block] = logits[id < 0 ? 0 : id] + 0.0f;
        }
    } else {
        finite = kernels.maxima(logits, what.vocabulary, greatest);
    }
    what.out[n] = -1;
    if (!finite) return;
    const size_t first = size_t(std::max_element(greatest, greatest + blocks) - greatest);
    const size_t best =
        size_t(std::find(logits + first * kBestBlock, logits + what.vocabulary, greatest[first]) - logits);
    const float temperature = what.temperature[n];
    if (!(temperature > 0.0f)) {
        what.out[n] = int64_t(best);
        return;
    }
    kernels.scale(greatest, blocks, temperature, greatest);
    const float top = greatest[first];
    if (!(std::abs(logits[best] / temperature) <= FLT_MAX)) return;
    const Row row{kernels, logits, what.vocabulary, blocks, temperature, top, greatest};
    const float floor = threshold(row, what.top_k[n], what.top_p[n], what.min_p[n], x, weights);

    uint32_t hash = mix(uint32_t(what.seeds[n]) ^ 0x9e3779b9u);
    hash = mix(hash ^ uint32_t(uint64_t(what.seeds[n]) >> 32));
    hash = mix(hash ^ uint32_t(what.sample_index[n]));
    hash = mix(hash ^ (what.narrow ? uint32_t(what.narrow[n]) : uint32_t(what.positions[n])));
    const uint32_t own = mix(hash ^ mix(uint32_t(best) + 0x85ebca6bu)) >> 9;
    double highest = double(top) + noise(own);
    size_t token = best;
    uint32_t bits[kBestBlock];
    for (size_t block = 0; block < blocks; ++block) {
        if (greatest[block] < floor) continue;
        // For x - log(-log(u)) > highest, -log(u) must be below exp(x - highest), and so 1 - u, which is
        // less: u is near 1.
        const double missing = std::exp(double(greatest[block]) - highest) * 0x1.0001p23;
        if (missing < 0.5) continue;
        const uint32_t limit = missing < double(1 << 23) ? uint32_t((1 << 23) - missing - 0.5) : 0;
        if (!kernels.draw(hash, uint32_t(block * kBestBlock), limit, bits)) continue;
        const size_t count = row.scaled(block, x);
        for (size_t i = 0; i < count; ++i) {
            if (bits[i] < limit || x[i] < floor) continue;
            const double drawn = double(x[i]) + noise(bits[i]);
            const size_t id = block * kBestBlock + i;
            if (drawn > highest || (drawn == highest && id < token)) {
                highest = drawn;
                token = id;
            }
        }
    }
    what.out[n] = int64_t(token);
}

void advance(const Advance& what, size_t n) {
    const int64_t token = what.tokens[n];
    const int64_t *stops = what.stops + n * what.stops_of_row, *end = stops + what.stops_of_row;
    const bool ended = token < 0 || std::find(stops, end, token) != end;
    what.left[n] = ended ? 0 : std::max(what.left[n] - 1, 0);
    if (what.left[n] == 0) return;
    const int64_t place = what.positions[n] + 1, number = place / what.block;
    if (place < 0 || size_t(number) >= what.table_stride)
        throw std::out_of_range("position " + std::to_string(place) + " of row " + std::to_string(n) +
                                " is in block " + std::to_string(number) + ", and its table has " +
                                std::to_string(what.table_stride));
    what.ids[n] = token;
    what.positions[n] = place;
    what.slots[n] =
        int64_t(what.tables[n * what.table_stride + size_t(number)]) * what.block + place % what.block;
    what.lens[n] = int32_t(place + 1);
}

}  // namespace baize
