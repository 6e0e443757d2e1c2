// Threads that share the chunks of one loop. Knows no tensors.
//
// The calling thread takes chunks too, and no chunk belongs to a thread beforehand. So a
// thread that gets no core costs the loop only the chunk that it has begun. A thread
// that waits spins for a short time and then sleeps: on a busy machine it would spin for
// a core that another thread needs.

#pragma once

#include <pthread.h>
#include <sched.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <thread>

namespace llama_perf {

class Threads {
 public:
  // Calls `work(chunk)` once for each chunk from 0 to `chunks` - 1 on at most `count`
  // threads; returns when all calls have returned.
  template <typename Work>
  static void run(int64_t chunks, int count, const Work& work) {
    if (count <= 1 || chunks <= 1) {
      for (int64_t chunk = 0; chunk < chunks; chunk++) work(chunk);
      return;
    }
    instance().share(chunks, count, &work, [](const void* context, int64_t chunk) {
      (*static_cast<const Work*>(context))(chunk);
    });
  }

 private:
  using Call = void (*)(const void*, int64_t);
  // What lies between two products of a step is shorter, a scheduler's slice longer.
  static constexpr std::chrono::microseconds kSpin{50};
  // `next_` counts loops in its upper half and the chunks of a loop in its lower half.
  static constexpr uint64_t kLoop = uint64_t{1} << 32;

  // A forked process has none of its parent's threads, so it starts its own.
  static Threads& instance() {
    static std::mutex guard;
    static Threads* threads = nullptr;
    static pid_t owner = 0;
    std::lock_guard lock(guard);
    if (owner != getpid()) {
      threads = new Threads;  // Kept until the process ends: its threads use it.
      owner = getpid();
    }
    return *threads;
  }

  void share(int64_t chunks, int count, const void* context, Call call) {
    std::lock_guard one_loop_at_a_time(caller_);
    for (; helpers_ < count - 1; helpers_++) std::thread([this] { help(); }).detach();
    chunks_.store(chunks, std::memory_order_relaxed);
    context_.store(context, std::memory_order_relaxed);
    call_.store(call, std::memory_order_relaxed);
    finished_.store(0, std::memory_order_relaxed);
    next_.store((next_.load(std::memory_order_relaxed) / kLoop + 1) * kLoop);
    wake(begun_, sleepers_);
    take_chunks();
    wait(done_, waiting_, [&] { return finished_.load() == chunks; });
  }

  void help() {
    become_batch_thread();
    uint64_t loop = 0;
    while (true) {
      wait(begun_, sleepers_, [&] { return next_.load() / kLoop != loop; });
      loop = take_chunks();
    }
  }

  // A woken thread may take the core of its caller, which then waits. A batch thread
  // takes no core from a running thread. Where the system refuses that, loops are slower
  // on a busy machine and the same elsewhere.
  static void become_batch_thread() {
#if defined(SCHED_BATCH)
    const sched_param parameters{};
    pthread_setschedparam(pthread_self(), SCHED_BATCH, &parameters);
#endif
  }

  // Takes chunks until there are none; returns the loop that the last look was at.
  uint64_t take_chunks() {
    uint64_t seen = next_.load();
    while (true) {
      // Of a later loop, if one began since; then the exchange fails.
      const int64_t chunks = chunks_.load(std::memory_order_relaxed);
      const void* context = context_.load(std::memory_order_relaxed);
      const Call call = call_.load(std::memory_order_relaxed);
      const auto chunk = static_cast<int64_t>(seen % kLoop);
      if (chunk >= chunks) return seen / kLoop;
      if (!next_.compare_exchange_weak(seen, seen + 1)) continue;
      call(context, chunk);
      if (finished_.fetch_add(1) + 1 == chunks) wake(done_, waiting_);
      seen = next_.load();
    }
  }

  template <typename Ready>
  void wait(std::condition_variable& event, std::atomic<int>& sleepers,
            const Ready& ready) {
    const auto end = std::chrono::steady_clock::now() + kSpin;
    do {
      for (int spin = 0; spin < 32; spin++) {
        if (ready()) return;
#if defined(__x86_64__)
        __builtin_ia32_pause();
#endif
      }
    } while (std::chrono::steady_clock::now() < end);
    std::unique_lock lock(sleep_);
    sleepers++;
    event.wait(lock, ready);
    sleepers--;
  }

  void wake(std::condition_variable& event, std::atomic<int>& sleepers) {
    if (sleepers.load() == 0) return;
    std::lock_guard lock(sleep_);
    event.notify_all();
  }

  // Apart in memory: what each chunk writes, and what is only read meanwhile.
  static constexpr size_t kApart = 64;
  std::mutex caller_, sleep_;
  std::condition_variable begun_, done_;
  std::atomic<int> sleepers_{0}, waiting_{0};
  int helpers_ = 0;
  alignas(kApart) std::atomic<uint64_t> next_{0};
  alignas(kApart) std::atomic<int64_t> finished_{0};
  alignas(kApart) std::atomic<int64_t> chunks_{0};
  std::atomic<const void*> context_{nullptr};
  std::atomic<Call> call_{nullptr};
};

}  // namespace llama_perf
