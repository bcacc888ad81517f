// Teams of neurons: who is summed with whom, by the neuron's number and the size of the layer alone. A team is a run of
// neurons, so that a list that ascends is in the order of the teams.
#pragma once

#include <algorithm>

#include "../native/kernels.hpp"
#include "../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

constexpr std::int64_t kMaxTeams = 16;

class Teams {
 public:
  Teams() = default;
  // All of the layer's neurons where `indices` is null; otherwise the listed ones, sorted into `room` where they do not
  // ascend.
  Teams(std::int64_t neurons, const std::int32_t* indices, std::int64_t count, std::int32_t* room)
      : listed_(indices), size_(neurons < 4096 ? kMaxTeams / 2 : kMaxTeams), each_((neurons + size_ - 1) / size_) {
    if (indices && !std::is_sorted(indices, indices + count)) {
      std::copy(indices, indices + count, room);
      std::stable_sort(room, room + count, [&](auto a, auto b) { return a / each_ < b / each_; });
      listed_ = room;
    }
    for (std::int64_t team = 1; team <= size_; ++team) {
      const std::int64_t end = team * each_ < neurons ? team * each_ : neurons;
      starts_[team] =
          listed_ ? std::partition_point(listed_, listed_ + count, [&](auto i) { return i < end; }) - listed_ : end;
    }
  }

  std::int64_t size() const { return size_; }
  bool is_dense() const { return listed_ == nullptr; }
  std::int64_t count(std::int64_t team) const { return starts_[team + 1] - starts_[team]; }

  // The j-th neuron of a team.
  std::int64_t neuron(std::int64_t team, std::int64_t j) const {
    return listed_ ? listed_[starts_[team] + j] : starts_[team] + j;
  }

 private:
  const std::int32_t* listed_ = nullptr;
  std::int64_t size_ = 0, each_ = 0;
  std::int64_t starts_[kMaxTeams + 1] = {};
};

}  // namespace winnow::WINNOW_LEVEL
