// The phases of memory_update (docs/math.md 4), over slots i, j and channels c:
//   unit      N_i = u_i/|u_i|                                   (second order: and its derivative)
//   pairs     G_ij = N_i.N_j, L_ij = N_i.W_j + b_j              (and theirs)
//   rows      softmax of L_i: the two losses of slot i, and the gradient of L
//   elements  the losses' sums; dN_ic and dW_ic
//   slots     through the normalisation to memory, sums and mass
#pragma once

#include "memory_update_task.h"

namespace pinmem {
namespace memory_update_op {

template <class T, Pass kPass>
__device__ void unit_phase(const Update<T>& task, const Results<T, kPass>& results,
                           const Worker& worker) {
  using A = accumulator_t<T>;
  for (int k = worker.warp; k < task.slots; k += worker.warps) {
    const Slot<T> slot(task, k);
    A squared = 0, product = 0;
    for (int c = worker.lane; c < task.channels; c += kWarp) {
      const A u = slot.updated(c);
      squared += u * u;
      if (kPass == Pass::second) product += u * slot.updated_dot(c);
    }
    bool linear;
    const A inverse = inverse_norm(warp_sum(squared), linear);
    const A along = kPass == Pass::second && !linear ? inverse * warp_sum(product) : A(0);
    for (int c = worker.lane; c < task.channels; c += kWarp) {
      const A unit = inverse * slot.updated(c);
      results.unit[slot.row + c] = unit;
      if (kPass == Pass::forward) task.new_memory[slot.row + c] = narrow<T>(unit);
      if (kPass == Pass::second) {
        const A unit_dot = inverse * (slot.updated_dot(c) - unit * along);
        results.unit_dot[slot.row + c] = unit_dot;
        task.new_memory[slot.row + c] = narrow<T>(unit_dot);
      }
    }
    if (worker.lane == 0) {
      results.inverse[k] = linear ? -inverse : inverse;
      results.along[k] = along;
    }
  }
}

template <class T, Pass kPass>
__device__ void pairs_phase(const Update<T>& task, const Results<T, kPass>& results,
                            const Worker& worker) {
  using A = accumulator_t<T>;
  for (int64_t pair = worker.warp; pair < task.pairs(); pair += worker.warps) {
    const auto i = static_cast<int>(pair / task.slots), j = static_cast<int>(pair % task.slots);
    const int64_t at = static_cast<int64_t>(i) * task.channels;
    const int64_t to = static_cast<int64_t>(j) * task.channels;
    A similarity = 0, similarity_dot = 0, logit = 0, logit_dot = 0;
    for (int c = worker.lane; c < task.channels; c += kWarp) {
      const A unit = results.unit[at + c], other = results.unit[to + c];
      const A weight = load(task.in.weight, to + c);
      similarity += unit * other;
      logit += unit * weight;
      if (kPass == Pass::second) {
        const A unit_dot = results.unit_dot[at + c];
        similarity_dot += unit_dot * other;
        logit_dot += unit_dot * weight + unit * load(task.tangent.weight, to + c);
      }
    }
    similarity = warp_sum(similarity);
    logit = warp_sum(logit);
    if (kPass == Pass::second) {
      similarity_dot = warp_sum(similarity_dot);
      logit_dot = warp_sum(logit_dot);
    }
    if (worker.lane != 0) continue;
    results.pairs[pair] = i == j ? A(0) : similarity;
    results.logits[pair] = logit + load(task.in.bias, j);
    if (kPass == Pass::second) {
      results.pairs_dot[pair] = similarity_dot;
      results.logits_dot[pair] = logit_dot + load(task.tangent.bias, j);
    }
  }
}

/// Leaves the gradient of the logits in their place.
template <class T, Pass kPass>
__device__ void rows_phase(const Update<T>& task, const Results<T, kPass>& results,
                           const Worker& worker) {
  using A = accumulator_t<T>;
  const A scale = load(task.grad_classification, 0) / task.slots;
  for (int i = worker.warp; i < task.slots; i += worker.warps) {
    const int64_t row = static_cast<int64_t>(i) * task.slots;
    A top = results.logits[row], divergence = 0;
    for (int j = worker.lane; j < task.slots; j += kWarp) {
      top = larger(top, results.logits[row + j]);
      const A similarity = results.pairs[row + j];
      if (similarity > 0) {
        divergence += kPass == Pass::second ? 2 * results.pairs_dot[row + j] : similarity;
      }
    }
    top = warp_max(top);
    A sum = 0, product = 0;
    for (int j = worker.lane; j < task.slots; j += kWarp) {
      const A power = exp(results.logits[row + j] - top);
      sum += power;
      if (kPass == Pass::second) product += power * results.logits_dot[row + j];
    }
    sum = warp_sum(sum);
    divergence = warp_sum(divergence);
    const A mean = kPass == Pass::second ? warp_sum(product) / sum : A(0);
    if (worker.lane == 0 && kPass != Pass::backward) {
      results.row_divergence[i] = divergence;
      results.row_classification[i] = kPass == Pass::second
                                          ? mean - results.logits_dot[row + i]
                                          : log(sum) + top - results.logits[row + i];
    }
    if (kPass == Pass::forward) continue;
    __syncwarp();
    for (int j = worker.lane; j < task.slots; j += kWarp) {
      const A probability = exp(results.logits[row + j] - top) / sum;
      results.logits[row + j] = scale * (probability - (i == j ? A(1) : A(0)));
      if (kPass == Pass::second) {
        results.logits_dot[row + j] = scale * probability * (results.logits_dot[row + j] - mean);
      }
    }
  }
}

/// The mean over ordered pairs of slots, of a sum over them.
template <class A>
__device__ A mean_of_pairs(int slots) {
  return slots > 1 ? A(1) / (static_cast<A>(slots) * (slots - 1)) : A(0);
}

template <class T, Pass kPass>
__device__ void elements_phase(const Update<T>& task, const Results<T, kPass>& results,
                               const Worker& worker) {
  using A = accumulator_t<T>;
  if (kPass != Pass::backward && worker.warp == 0) {
    A divergence = 0, classification = 0;
    for (int i = worker.lane; i < task.slots; i += kWarp) {
      divergence += results.row_divergence[i];
      classification += results.row_classification[i];
    }
    divergence = warp_sum(divergence);
    classification = warp_sum(classification);
    if (worker.lane == 0) {
      task.divergence[0] = narrow<T>(divergence * mean_of_pairs<A>(task.slots));
      task.classification[0] = narrow<T>(classification / task.slots);
    }
  }
  if (kPass == Pass::forward) return;
  const A push = 2 * load(task.grad_divergence, 0) * mean_of_pairs<A>(task.slots);
  for (int64_t at = worker.thread; at < task.elements(); at += worker.threads) {
    const auto i = static_cast<int>(at / task.channels), c = static_cast<int>(at % task.channels);
    A grad = load(task.grad_memory, at), grad_dot = 0, weight = 0;
    for (int j = 0; j < task.slots; ++j) {
      const int64_t pair = static_cast<int64_t>(i) * task.slots + j;
      const int64_t mirrored = static_cast<int64_t>(j) * task.slots + i;
      const int64_t other = static_cast<int64_t>(j) * task.channels + c;
      const A near = results.pairs[pair] > 0 ? push : A(0);
      const A of_weight = load(task.in.weight, other), unit = results.unit[other];
      grad += near * unit + results.logits[pair] * of_weight;
      if (kPass == Pass::backward) {
        weight += results.logits[mirrored] * unit;
      } else {
        const A unit_dot = results.unit_dot[other];
        grad_dot += near * unit_dot + results.logits_dot[pair] * of_weight +
                    results.logits[pair] * load(task.tangent.weight, other);
        weight += results.logits_dot[mirrored] * unit + results.logits[mirrored] * unit_dot;
      }
    }
    results.grad_unit[at] = grad;
    if (kPass == Pass::second) results.grad_unit_dot[at] = grad_dot;
    task.gradient.weight[at] = narrow<T>(weight);
  }
  const A* of_logits = kPass == Pass::backward ? results.logits : results.logits_dot;
  for (int j = worker.thread; j < task.slots; j += worker.threads) {
    A bias = 0;
    for (int i = 0; i < task.slots; ++i) {
      bias += of_logits[static_cast<int64_t>(i) * task.slots + j];
    }
    task.gradient.bias[j] = narrow<T>(bias);
  }
}

template <class T, Pass kPass>
__device__ void slots_phase(const Update<T>& task, const Results<T, kPass>& results,
                            const Worker& worker) {
  using A = accumulator_t<T>;
  for (int k = worker.warp; k < task.slots; k += worker.warps) {
    const Slot<T> slot(task, k);
    const bool linear = results.inverse[k] < 0;
    const A inverse = linear ? -results.inverse[k] : results.inverse[k];
    const A along = results.along[k];
    // Parts of the gradient along the unit vector, which a normalisation takes out.
    A part = 0, part_dot = 0;
    for (int c = worker.lane; c < task.channels; c += kWarp) {
      const int64_t at = slot.row + c;
      part += results.unit[at] * results.grad_unit[at];
      if (kPass == Pass::second) {
        part_dot += results.unit_dot[at] * results.grad_unit[at] +
                    results.unit[at] * results.grad_unit_dot[at];
      }
    }
    part = linear ? A(0) : warp_sum(part);
    part_dot = linear || kPass != Pass::second ? A(0) : warp_sum(part_dot);
    A mass = 0, mass_dot = 0;
    for (int c = worker.lane; c < task.channels; c += kWarp) {
      const int64_t at = slot.row + c;
      const A grad = inverse * (results.grad_unit[at] - results.unit[at] * part);
      mass += slot.sums(c) * grad;
      if (kPass == Pass::backward) {
        task.gradient.memory[at] = narrow<T>(slot.keep * grad);
        task.gradient.sums[at] = narrow<T>(slot.add * grad);
      } else {
        A grad_dot = results.grad_unit_dot[at] - results.unit[at] * part_dot;
        if (!linear) grad_dot -= results.unit_dot[at] * part + along * grad;
        grad_dot *= inverse;
        mass_dot += slot.sums(c) * grad_dot + slot.sums_dot(c) * grad;
        task.gradient.memory[at] = narrow<T>(slot.keep * grad_dot);
        task.gradient.sums[at] = narrow<T>(slot.add * grad_dot + slot.add_dot * grad);
      }
    }
    mass = warp_sum(mass);
    if (kPass == Pass::second) mass_dot = warp_sum(mass_dot);
    if (worker.lane != 0) continue;
    // The derivative of (1 - momentum)/mass is -add/mass, and of that 2 add/mass^2.
    const A per_mass = slot.present ? slot.add / load(task.in.mass, k) : A(0);
    A gradient = -per_mass * mass;
    if (kPass == Pass::second) {
      const A twice = slot.present ? 2 * slot.add_dot / load(task.in.mass, k) : A(0);
      gradient = -per_mass * mass_dot - twice * mass;
    }
    task.gradient.mass[k] = narrow<T>(gradient);
  }
}

/// Phases first_phase to last_phase: all in one block, or one each a launch.
template <class T, Pass kPass>
__global__ void __launch_bounds__(threads_of(kPass), 1)
    memory_update_phases(const __grid_constant__ Update<T> task) {
  const Worker worker;
  const Results<T, kPass> results(task);
  for (int phase = task.first_phase; phase <= task.last_phase; ++phase) {
    if (phase > task.first_phase) __syncthreads();
    if (phase == kUnit) unit_phase<T, kPass>(task, results, worker);
    if (phase == kPairs) pairs_phase<T, kPass>(task, results, worker);
    if (phase == kRows) rows_phase<T, kPass>(task, results, worker);
    if (phase == kElements) elements_phase<T, kPass>(task, results, worker);
    if constexpr (kPass != Pass::forward) {
      if (phase == kSlots) slots_phase<T, kPass>(task, results, worker);
    }
  }
}

}  // namespace memory_update_op
}  // namespace pinmem
