// Teams of neurons: who is summed with whom, by the neuron's number and the size of the layer alone.
#pragma once

#include "../native/kernels.hpp"
#include "../native/rows.hpp"

namespace winnow::WINNOW_LEVEL {

constexpr std::int64_t kMaxTeams = 16;
constexpr std::int64_t kRun = 32;  // consecutive neurons of one team; short, so that often-firing runs spread out

class Teams {
 public:
  Teams() = default;
  // All of the layer's neurons where `indices` is null; otherwise the listed ones, sorted by team into `room`.
  Teams(std::int64_t neurons, const std::int32_t* indices, std::int64_t count, std::int32_t* room)
      : listed_(indices ? room : nullptr), size_(neurons < 4096 ? kMaxTeams / 2 : kMaxTeams) {
    if (!indices) {
      for (std::int64_t team = 0; team < size_; ++team) {
        const std::int64_t rounds = neurons / (kRun * size_), rest = neurons % (kRun * size_) - team * kRun;
        starts_[team + 1] = rounds * kRun + (rest < 0 ? 0 : rest < kRun ? rest : kRun);
      }
    } else {
      for (std::int64_t a = 0; a < count; ++a) ++starts_[team_of(indices[a]) + 1];
    }
    for (std::int64_t team = 0; team < size_; ++team) starts_[team + 1] += starts_[team];
    if (!indices) return;
    std::int64_t at[kMaxTeams];
    for (std::int64_t team = 0; team < size_; ++team) at[team] = starts_[team];
    for (std::int64_t a = 0; a < count; ++a) room[at[team_of(indices[a])]++] = indices[a];
  }

  std::int64_t size() const { return size_; }
  bool is_dense() const { return listed_ == nullptr; }
  std::int64_t count(std::int64_t team) const { return starts_[team + 1] - starts_[team]; }

  // The j-th neuron of a team.
  std::int64_t neuron(std::int64_t team, std::int64_t j) const {
    return listed_ ? listed_[starts_[team] + j] : (j / kRun * size_ + team) * kRun + j % kRun;
  }

 private:
  // size_ is a power of two, kRun too: no division.
  std::int64_t team_of(std::int64_t neuron) const { return neuron / kRun & (size_ - 1); }

  const std::int32_t* listed_ = nullptr;
  std::int64_t size_ = 0;
  std::int64_t starts_[kMaxTeams + 1] = {};
};

}  // namespace winnow::WINNOW_LEVEL
