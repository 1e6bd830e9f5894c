// SPDX-License-Identifier: GPL-2.0-or-later
// What is made once of tensors that stay as they are: plans and weights of a model, the edges of a step.

#ifndef HIENET_CUDA_MEMO_H
#define HIENET_CUDA_MEMO_H

#include <ATen/ATen.h>

#include <cstdint>
#include <list>
#include <memory>
#include <mutex>
#include <vector>

namespace hienet::cuda {

/// More layers than a model has.
constexpr size_t LAYERS = 64;
/// Graphs that are evaluated in turn.
constexpr size_t GRAPHS = 2;

/// Values by the tensors of which they were made. Reading a plan from a GPU makes the host wait for it; this is what
/// makes that happen once.
///
/// A tensor is known by its memory: the same storage, not changed in place since. A value goes when its tensors have gone,
/// unless it holds on to them; then it goes when `Capacity` others have come.
template <typename Value, size_t Capacity> class Memo {
 public:
  /// The value of these tensors and numbers, made by `make` if it is not there.
  template <typename Make>
  std::shared_ptr<const Value> get(at::TensorList tensors, std::vector<int64_t> numbers,
                                   const Make &make)
  {
    for (const at::Tensor &tensor : tensors) describe(tensor, numbers);
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (auto entry = entries_.begin(); entry != entries_.end();) {
        if (entry->is_gone()) {
          entry = entries_.erase(entry);
          continue;
        }
        if (entry->key == numbers) {
          entries_.splice(entries_.begin(), entries_, entry);
          return entry->value;
        }
        ++entry;
      }
    }
    Entry entry;
    entry.key = std::move(numbers);
    for (const at::Tensor &tensor : tensors)
      entry.storages.emplace_back(tensor.storage().getWeakStorageImpl());
    entry.value = std::make_shared<const Value>(make());
    const std::lock_guard<std::mutex> lock(mutex_);
    entries_.push_front(std::move(entry));
    if (entries_.size() > Capacity) entries_.pop_back();
    return entries_.front().value;
  }

 private:
  struct Entry {
    std::vector<int64_t> key;
    std::vector<c10::weak_intrusive_ptr<c10::StorageImpl>> storages;
    std::shared_ptr<const Value> value;

    bool is_gone() const
    {
      for (const auto &storage : storages)
        if (storage.expired()) return true;
      return false;
    }
  };

  std::mutex mutex_;
  std::list<Entry> entries_;    // the last one used comes first

  static void describe(const at::Tensor &tensor, std::vector<int64_t> &key)
  {
    key.push_back(reinterpret_cast<int64_t>(tensor.storage().unsafeGetStorageImpl()));
    key.push_back(tensor.storage_offset());
    key.push_back(static_cast<int64_t>(tensor.scalar_type()));
    key.push_back(tensor.is_inference() ? -1 : static_cast<int64_t>(tensor._version()));
    for (int64_t i = 0; i < tensor.dim(); i++) {
      key.push_back(tensor.size(i));
      key.push_back(tensor.stride(i));
    }
  }
};

}    // namespace hienet::cuda

#endif
