// Memory aligned to 64 bytes, which grows and is not initialised.
#pragma once

#include <cstddef>
#include <memory>
#include <new>

namespace baize {

// Growing it discards the contents.
template <class T>
class Buffer {
   public:
    T* data() const { return memory_.get(); }
    void grow(size_t size) {
        if (size <= size_) return;
        memory_.reset();
        size_ = 0;  // in case the next line throws
        memory_.reset(static_cast<T*>(::operator new(size * sizeof(T), std::align_val_t{64})));
        size_ = size;
    }

   private:
    struct Free {
        void operator()(T* memory) const { ::operator delete(memory, std::align_val_t{64}); }
    };
    std::unique_ptr<T, Free> memory_;
    size_t size_ = 0;
};

}  // namespace baize
