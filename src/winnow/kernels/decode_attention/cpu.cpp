// One query per head against the cache: blocks of positions, each with its own maximum, combined in order.
#include "store.hpp"

namespace winnow::WINNOW_LEVEL {

constexpr std::int64_t kBlock = 256;  // positions

static std::int64_t smaller(std::int64_t a, std::int64_t b) { return a < b ? a : b; }

void append_kv(const KvBlock& kv, std::int64_t position, const float* k, const float* v) {
  for (std::int64_t h = 0; h < kv.kv_heads; ++h) {
    const std::int64_t at = (h * kv.capacity + position) * kv.width;
    store_rows(kv, kv.keys, at, kv.width, k + h * kv.width);
    store_rows(kv, kv.values, at, kv.width, v + h * kv.width);
  }
}

// A head's share of one block: maximum score, sum of exponentials, their weighted sum of values.
struct Part {
  float *maximum, *total, *values;
};

// scores[0..n) become exp(score - maximum); the room up to a whole vector beyond them is used
static void exponentiate(float* scores, std::int64_t n, Part part) {
  constexpr float kLowest = -3e38f;  // its exponential is nothing beside that of the maximum, which is 1
  for (std::int64_t t = n; t % kLanes; ++t) scores[t] = kLowest;
  Floats highs = splat(kLowest);
  for (std::int64_t t = 0; t < n; t += kLanes) highs = maximum(load(scores + t), highs);
  float lanes[kLanes];
  store(lanes, highs);
  float highest = lanes[0];
  for (int i = 1; i < kLanes; ++i) highest = lanes[i] > highest ? lanes[i] : highest;
  Floats totals[kRows];
  for (auto& total : totals) total = zero();
  for (std::int64_t t = 0; t < n; t += kLanes) {
    const Floats e = exponential(load(scores + t) - splat(highest));
    store(scores + t, e);
    totals[0] = totals[0] + e;
  }
  float sums[kRows];
  sum8(totals, sums);
  *part.maximum = highest;
  *part.total = sums[0];
}

template <class W>
static void attend_block(const float* q, const W* keys, const W* values, std::int64_t n, std::int64_t width, float scale,
                         Part part) {
  float scores[kBlock + kLanes + kRows];
  const W* rows[kRows];
  for (std::int64_t t = 0; t < n; t += kRows) {
    for (std::int64_t r = 0; r < kRows; ++r) rows[r] = keys + smaller(t + r, n - 1) * width;
    float sums[kRows];
    dot<W>(rows, q, width, sums);
    for (std::int64_t r = 0; r < smaller(kRows, n - t); ++r) scores[t + r] = sums[r] * scale;
  }
  exponentiate(scores, n, part);
  for (std::int64_t e = 0; e < width; ++e) part.values[e] = 0.f;
  for (std::int64_t t = 0; t < n; t += kRows) {
    const int count = static_cast<int>(smaller(kRows, n - t));
    for (int r = 0; r < count; ++r) rows[r] = values + (t + r) * width;
    axpy8<W>(rows, scores + t, count, width, part.values);
  }
  settle<W>(part.values, width);
}

// The parts of one head, weighted by exp(their maximum - the highest maximum).
static void combine(const float* parts, std::int64_t blocks, std::int64_t part_floats, std::int64_t width, float* out) {
  float highest = parts[0];
  for (std::int64_t b = 1; b < blocks; ++b) {
    highest = parts[b * part_floats] > highest ? parts[b * part_floats] : highest;
  }
  float total = 0.f;
  for (std::int64_t e = 0; e < width; ++e) out[e] = 0.f;
  for (std::int64_t b = 0; b < blocks; ++b) {
    const float* part = parts + b * part_floats;
    float lanes[kLanes];
    store(lanes, exponential(splat(part[0] - highest)));
    total += lanes[0] * part[1];
    for (std::int64_t e = 0; e < width; ++e) out[e] += lanes[0] * part[2 + e];
  }
  for (std::int64_t e = 0; e < width; ++e) out[e] /= total;
}

template <class W>
static void attend_typed(Context& context, const float* q, std::int64_t heads, const KvBlock& kv, std::int64_t start,
                         std::int64_t length, float scale, const std::int32_t* listed, std::int64_t count, float* out) {
  const std::int64_t width = kv.width, shared = heads / kv.kv_heads;
  const std::int64_t blocks = (length - start + kBlock - 1) / kBlock, part_floats = (width + 2 + 15) / 16 * 16;
  float* parts = context.scratch.floats(1, heads * blocks * part_floats);
  const auto *keys = reinterpret_cast<const W*>(kv.keys), *values = reinterpret_cast<const W*>(kv.values);
  const auto head = [&](std::int64_t place) { return listed ? listed[place] : place; };
  auto job = [&](Pool& pool) {
    each_block(pool, 0, count * blocks, [&](std::int64_t task) {
      const std::int64_t kv_head = head(task / blocks), block = task % blocks;
      const std::int64_t begin = start + block * kBlock, n = smaller(kBlock, length - begin);
      const std::int64_t at = (kv_head * kv.capacity + begin) * width;
      for (std::int64_t h = kv_head * shared; h < (kv_head + 1) * shared; ++h) {
        float* part = parts + (h * blocks + block) * part_floats;
        attend_block(q + h * width, keys + at, values + at, n, width, scale, Part{part, part + 1, part + 2});
      }
    });
    pool.wait(0, count * blocks);
    each_block(pool, 1, count, [&](std::int64_t place) {
      const std::int64_t kv_head = head(place);
      for (std::int64_t h = kv_head * shared; h < (kv_head + 1) * shared; ++h) {
        combine(parts + h * blocks * part_floats, blocks, part_floats, width, out + h * width);
      }
    });
    pool.wait(1, count);
  };
  run_job(context.pool, 2 * count * (length - start) * width * std::int64_t(sizeof(W)), job);
}

void attend(Context& context, const float* q, std::int64_t heads, const KvBlock& kv, std::int64_t start,
            std::int64_t length, float scale, const std::int32_t* listed, std::int64_t count, float* out) {
  if (kv.dtype == Dtype::bfloat16) {
    attend_typed<bf16>(context, q, heads, kv, start, length, scale, listed, count, out);
  } else {
    attend_typed<float>(context, q, heads, kv, start, length, scale, listed, count, out);
  }
}

}  // namespace winnow::WINNOW_LEVEL
