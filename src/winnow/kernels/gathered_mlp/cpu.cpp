// The MLP over a list of neurons, record by record.
//
// The layer's neurons are eight or sixteen teams. A team's neurons are summed in the order of the list by one thread, the
// teams' sums in pairs: the bits depend neither on the number of threads nor on whether neurons that do not fire are
// listed.
//
// Each thread reads eight records side by side, from their in-weights on to their out-weights, whose beginning is
// fetched before it is known whether the neurons fire; the eight records after them are known by then. Neurons that fire are
// added by eights: int4 is rounded together with its neighbours, so these must be the same whatever else is listed.
//
// The vectors of a batch have a list and a sum each. A thread works through a team's neurons in windows that its cache
// holds, vector by vector, each as if it were alone: what several list is read from memory once.
//
// Where the gates are given, a neuron's in-weights are its up row alone.
#include <utility>

#include "neuron.hpp"
#include "teams.hpp"

namespace winnow::WINNOW_LEVEL {

constexpr std::int64_t kWindowBytes = 384 << 10;  // of a second-level cache of 1 MB or more

template <class W>
struct Mlp {
  const NeuronRecords& records;
  std::int64_t batch;
  Teams teams[kMostBatch];
  Activation activation;
  const Input<W>* x[kMostBatch];
  const float* gates;  // of every vector and neuron, activated, or null: to be computed
  float* sums;         // [vector, team, width]
  float* out;
  int* arrived;  // of each pair of teams, of pairs and so on, where its second half begins: the halves that are finished
  Parts<W> parts{records};

  std::int64_t first() const { return gates ? parts.up() : 0; }  // what is read of a record, in elements from its start
  float* sum(std::int64_t vector, std::int64_t team) const {
    return sums + (vector * kMaxTeams + team) * records.width;
  }
};

// Adds a finished team's sums to those of the team beside it, if that is finished too, those of both to those of the pair
// beside them, and so on: the last to be added are the output. Whoever finishes a second half adds it, so that what is
// added is mostly what the thread has just written.
template <class W>
static void join(const Mlp<W>& mlp, std::int64_t team) {
  const std::int64_t teams = mlp.teams[0].size(), width = mlp.records.width;
  for (std::int64_t b = 0; b < mlp.batch; ++b) {
    if (mlp.teams[b].count(team) > 0) continue;
    for (std::int64_t d = 0; d < width; ++d) mlp.sum(b, team)[d] = 0.f;
  }
  for (std::int64_t half = 1; half < teams; half *= 2) {
    const std::int64_t first = team / (2 * half) * 2 * half, second = first + half;
    if (__atomic_fetch_add(mlp.arrived + second, 1, __ATOMIC_ACQ_REL) == 0) return;
    for (std::int64_t b = 0; b < mlp.batch; ++b) {
      float *sum = mlp.sum(b, first), *to = 2 * half < teams ? sum : mlp.out + b * width;
      for (std::int64_t d = 0; d < width; ++d) to[d] = sum[d] + mlp.sum(b, second)[d];
    }
  }
  for (std::int64_t b = 0; b < mlp.batch; ++b) settle<W>(mlp.out + b * width, width);
}

template <class W>
struct Group {
  Row<W> in[kRows];  // from `first` on; the last neuron stands in for those that are missing
  const float* tails[kRows];
  float values[2 * kRows] = {};  // before they are computed, the given gates
  int size = 0;
  std::int64_t team = 0, vector = 0;
  bool is_first = false, is_last = false;  // of its vector's team; of its team
};

// The neurons of a vector's team that fire and are not added yet.
template <class W>
struct Firing {
  Row<W> out[2 * kRows];
  float values[2 * kRows];
  int count = 0;
};

// The groups of the teams that this thread claims, one after the other.
template <class W>
class Stream {
 public:
  Stream(const Mlp<W>& mlp, Pool& pool) : mlp_(mlp), pool_(pool) { next_team(); }

  // The next eight neurons of a team, or a group of size 0 at the end.
  void read(Group<W>& group) {
    group.size = 0;
    if (team_ >= mlp_.teams[0].size()) return;
    group.team = team_;
    group.vector = vector_;
    std::int64_t& at = at_[vector_];
    const Teams& teams = mlp_.teams[vector_];
    const float* gates = mlp_.gates ? mlp_.gates + vector_ * mlp_.records.neurons : nullptr;
    group.is_first = at == 0;
    for (int r = 0; r < kRows; ++r) {
      const std::int64_t neuron = teams.neuron(team_, at + r < end_[vector_] ? at + r : end_[vector_] - 1);
      group.in[r] = mlp_.parts.moved(mlp_.parts.row(neuron), mlp_.first());
      group.values[r] = gates ? gates[neuron] : 0.f;
      group.tails[r] = mlp_.parts.tail(neuron);
      prefetch(group.tails[r]);
    }
    group.size = static_cast<int>(end_[vector_] - at < kRows ? end_[vector_] - at : kRows);
    at += group.size;
    group.is_last = !next_vector();
    if (group.is_last) next_team();
  }

 private:
  void next_team() {
    const std::int64_t teams = mlp_.teams[0].size();
    for (team_ = pool_.claim(0, teams); team_ < teams; team_ = pool_.claim(0, teams)) {
      for (std::int64_t b = 0; b < mlp_.batch; ++b) at_[b] = end_[b] = 0;
      vector_ = mlp_.batch - 1;
      if (next_vector()) return;
      join(mlp_, team_);
    }
  }

  // Goes to a vector with neurons left in this window or in the next one; false at the end of the team.
  bool next_vector() {
    while (at_[vector_] == end_[vector_]) {
      if (++vector_ == mlp_.batch) {
        if (!next_window()) return false;
        vector_ = 0;
      }
    }
    return true;
  }

  // Sets `end_` so that what lies before it is at most a window of records more than before, whoever lists them.
  bool next_window() {
    const std::int64_t bytes = kWindowBytes / mlp_.records.record_bytes, most = bytes < kRows ? kRows : bytes;
    if (mlp_.batch == 1) {
      end_[0] = mlp_.teams[0].count(team_);
    } else if (mlp_.teams[0].is_dense()) {
      const std::int64_t count = mlp_.teams[0].count(team_);
      for (std::int64_t b = 0; b < mlp_.batch; ++b) end_[b] = end_[b] + most < count ? end_[b] + most : count;
    } else {
      for (std::int64_t n = 0; n < most && step(); ++n) {
      }
    }
    bool is_more = false;
    for (std::int64_t b = 0; b < mlp_.batch; ++b) is_more = is_more || at_[b] < end_[b];
    return is_more;
  }

  // Takes the lowest neuron that any list goes on with into the window; false where all lists are at their end.
  bool step() {
    std::int64_t lowest = mlp_.records.neurons;
    for (std::int64_t b = 0; b < mlp_.batch; ++b) {
      if (end_[b] == mlp_.teams[b].count(team_)) continue;
      const std::int64_t neuron = mlp_.teams[b].neuron(team_, end_[b]);
      lowest = neuron < lowest ? neuron : lowest;
    }
    if (lowest == mlp_.records.neurons) return false;
    for (std::int64_t b = 0; b < mlp_.batch; ++b) {
      if (end_[b] < mlp_.teams[b].count(team_) && mlp_.teams[b].neuron(team_, end_[b]) == lowest) ++end_[b];
    }
    return true;
  }

  const Mlp<W>& mlp_;
  Pool& pool_;
  std::int64_t team_ = 0, vector_ = 0;
  std::int64_t at_[kMostBatch], end_[kMostBatch];  // of each vector: what is read next; the end of its window
};

// Computes the values of a group and lists the neurons that fire.
template <class W>
static void evaluate(const Mlp<W>& mlp, Group<W>& group, Firing<W>& firing) {
  float* values = group.values;
  const Parts<W>& parts = mlp.parts;
  Row<W> up[kRows], out[kRows];
  for (int r = 0; r < kRows; ++r) {
    up[r] = parts.moved(group.in[r], parts.up() - mlp.first());
    out[r] = parts.moved(group.in[r], parts.out() - mlp.first());
  }
  if (!mlp.gates) {
    part_dots<W>(parts, group.in, group.tails, 0, mlp.x[group.vector], values, mlp.records.gated ? up : out);
    for (int r = 0; r < kRows; ++r) values[r] += group.tails[r][0];
    activate(mlp.activation, values);
  }
  if (mlp.records.gated) {
    float ups[kRows];
    part_dots<W>(parts, up, group.tails, parts.up(), mlp.x[group.vector], ups, out);
    for (int r = 0; r < kRows; ++r) values[r] = values[r] == 0.f ? 0.f : values[r] * (ups[r] + group.tails[r][1]);
  }
  for (int r = 0; r < group.size; ++r) {
    if (values[r] == 0.f) continue;
    firing.out[firing.count] = out[r];
    firing.values[firing.count] = values[r];
    if constexpr (std::is_same_v<W, int8>) firing.values[firing.count] *= parts.scale(group.tails[r], parts.out());
    ++firing.count;
  }
}

// Adds the first neurons that fire, eight or all, to a sum; `next` is null, or the rows that are read next.
template <class W>
static void add(const Mlp<W>& mlp, Firing<W>& firing, float* sum, const Row<W>* next) {
  const int count = firing.count < kRows ? firing.count : kRows;
  axpy8<W>(firing.out, firing.values, count, mlp.records.width, sum, next);
  firing.count -= count;
  for (int r = 0; r < firing.count; ++r) {
    firing.out[r] = firing.out[kRows + r];
    firing.values[r] = firing.values[kRows + r];
  }
}

template <class W>
static void work_through(const Mlp<W>& mlp, Pool& pool) {
  Stream<W> stream(mlp, pool);
  Group<W> groups[2];
  Group<W> *now = &groups[0], *next = &groups[1];
  Firing<W> firing[kMostBatch];
  stream.read(*now);
  while (now->size > 0) {
    Firing<W>& those = firing[now->vector];
    float* sum = mlp.sum(now->vector, now->team);
    for (std::int64_t d = 0; now->is_first && d < mlp.records.width; ++d) sum[d] = 0.f;
    evaluate<W>(mlp, *now, those);
    stream.read(*next);
    if (those.count >= (now->is_last ? 1 : kRows)) {
      add<W>(mlp, those, sum, next->size > 0 ? next->in : now->in);
    } else {
      for (int r = 0; r < next->size; ++r) prefetch_start<W>(next->in[r], mlp.records.width);
    }
    if (now->is_last) {
      for (std::int64_t b = 0; b < mlp.batch; ++b) {
        if (firing[b].count > 0) add<W>(mlp, firing[b], mlp.sum(b, now->team), nullptr);
      }
      join(mlp, now->team);
    }
    std::swap(now, next);
  }
}

template <class W>
static void mlp_typed(Context& context, const float* x, std::int64_t batch, const NeuronRecords& records,
                      const Lists* lists, Activation activation, const float* gates, float* out) {
  const std::int64_t width = records.width;
  int arrived[kMaxTeams] = {};
  Mlp<W> mlp{records, batch, {}, activation, {}, gates, context.scratch.floats(1, batch * kMaxTeams * width), out, arrived};
  float* laid_out = context.scratch.floats(0, batch * input_floats(width));
  auto* room = static_cast<std::int32_t*>(context.scratch.bytes(2, lists ? (batch * lists->room + 1) * 4 : 4));
  std::int64_t n_listed = 0;
  for (std::int64_t b = 0; b < batch; ++b) {
    const std::int64_t count = lists ? lists->counts[b] : records.neurons;
    mlp.teams[b] = Teams(records.neurons, lists ? lists->of(b) : nullptr, count, lists ? room + b * lists->room : nullptr);
    mlp.x[b] = input<W>(x + b * width, width, laid_out + b * input_floats(width));
    n_listed += count;
  }
  auto job = [&](Pool& pool) { work_through(mlp, pool); };
  run_job(context.pool, n_listed * records.record_bytes, job);
}

void mlp(Context& context, const float* x, std::int64_t batch, const NeuronRecords& records, const Lists* lists,
         Activation activation, const float* gates, float* out) {
  of_weights(records.dtype, [&](auto w) {
    mlp_typed<decltype(w)>(context, x, batch, records, lists, activation, gates, out);
  });
}

}  // namespace winnow::WINNOW_LEVEL
