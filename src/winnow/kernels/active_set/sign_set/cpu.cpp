// Signs of what was projected against those of every neuron, then one ascending list for each vector.
#include "../listing.hpp"

namespace winnow::WINNOW_LEVEL {

void sign_set(Context& context, const float* projected, std::int64_t batch, const SignIndex& index,
              std::int32_t* indices, std::int64_t* count) {
  constexpr std::int64_t block = 256;
  const std::int64_t neurons = index.neurons, words = index.words, width = 64 * words;
  const std::int64_t blocks = (neurons + block - 1) / block;
  auto* own = static_cast<std::uint64_t*>(context.scratch.bytes(0, batch * words * 8));
  float* lengths = context.scratch.floats(1, batch);
  auto* counts = static_cast<std::int64_t*>(context.scratch.bytes(3, batch * blocks * 8));
  for (std::int64_t v = 0; v < batch; ++v) {
    const float* p = projected + v * width;
    double sum = 0;
    for (std::int64_t w = 0; w < words; ++w) {
      std::uint64_t word = 0;
      for (std::int64_t t = 0; t < 64; ++t) {
        const float value = p[w * 64 + t];
        word |= std::uint64_t{value > 0.f} << t;
        sum += static_cast<double>(value) * value;
      }
      own[v * words + w] = word;
    }
    lengths[v] = static_cast<float>(__builtin_sqrt(sum / static_cast<double>(width)));
  }
  auto job = [&](Pool& pool) {
    each_block(pool, 0, blocks, [&](std::int64_t b) {
      const std::int64_t begin = b * block, end = begin + block < neurons ? begin + block : neurons;
      for (std::int64_t v = 0; v < batch; ++v) {
        counts[v * blocks + b] = list_block(begin, end, indices + v * neurons, [&](std::int64_t f) {
          const std::int64_t differing = distance(own + v * words, index.signs + f * words, words);
          // what is not a number is selected
          return !(index.sizes[f] * lengths[v] * index.cosines[differing] + index.bias[f] <= 0.f);
        });
      }
    });
    pool.wait(0, blocks);
  };
  run_job(context.pool, neurons * (words + 1) * 8, job);
  for (std::int64_t v = 0; v < batch; ++v) {
    count[v] = join_blocks(block, blocks, counts + v * blocks, indices + v * neurons);
  }
}

}  // namespace winnow::WINNOW_LEVEL
