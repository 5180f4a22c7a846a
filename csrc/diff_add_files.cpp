#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "diff_add.h"
#include "float_state.h"

namespace baize {

namespace {

static_assert(sizeof(off_t) >= sizeof(int64_t), "files are larger than 2 GiB");

struct alignas(64) Room {
    uint8_t bytes[kChunk * sizeof(float)];
};

// Reads `count` elements from element `first` on; returns the reason if that fails.
std::optional<Unread> read_all(const FileOperand& from, size_t first, size_t count, uint8_t* to) {
    size_t wanted = count * itemsize(from.dtype);
    off_t at = off_t(from.offset) + off_t(first * itemsize(from.dtype));
    while (wanted > 0) {
        const ssize_t got = pread(from.fd, to, wanted, at);
        if (got < 0 && errno == EINTR) continue;
        if (got <= 0) return Unread{&from, got < 0 ? errno : 0};
        to += got;
        at += got;
        wanted -= size_t(got);
    }
    return std::nullopt;
}

}  // namespace

std::optional<Unread> diff_add_files(const Variant& variant, const FileOperand& base, const FileOperand& diff, Target out,
                                     size_t count, bool subtract, double* chunk_sums, Counts& counts) {
    thread_local const std::unique_ptr<Room> left(new Room), right(new Room);  // fresh memory in each call would be slow
    for (size_t first = 0; first < count; first += kChunk) {
        const size_t size = std::min(kChunk, count - first);
        if (auto unread = read_all(base, first, size, left->bytes)) return unread;
        if (auto unread = read_all(diff, first, size, right->bytes)) return unread;
        const DefaultFloatState state;
        chunk_sums[first / kChunk] = variant.chunk({left->bytes, base.dtype}, {right->bytes, diff.dtype},
                                                   {out.data + first * itemsize(out.dtype), out.dtype}, size, subtract,
                                                   counts);
    }
    return std::nullopt;
}

}  // namespace baize
