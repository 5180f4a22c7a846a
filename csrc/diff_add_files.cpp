#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <memory>

#include "csrc/diff_add.h"
#include "csrc/float_state.h"
#include "csrc/implementation.h"

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

std::optional<Unread> diff_add_files(const Implementation& by, const FileAddition& what, double* chunk_sums,
                                     Counts& counts) {
    // Fresh memory in each call would be slow.
    thread_local const std::unique_ptr<Room> left(new Room), right(new Room);
    for (size_t first = 0; first < what.count; first += kChunk) {
        const size_t size = std::min(kChunk, what.count - first);
        if (auto unread = read_all(what.base, first, size, left->bytes)) return unread;
        if (auto unread = read_all(what.diff, first, size, right->bytes)) return unread;
        const Addition chunk{{left->bytes, what.base.dtype},
                             {right->bytes, what.diff.dtype},
                             what.out.from(first),
                             size,
                             what.subtract};
        const DefaultFloatState state;
        chunk_sums[first / kChunk] = by.add_chunk(chunk, counts);
    }
    return std::nullopt;
}

}  // namespace baize
