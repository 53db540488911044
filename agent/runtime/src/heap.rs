//! What a piece of work takes from the heap, counted on the thread that does it.
//!
//! One process serves several models, so its resident memory does not tell which of them grew. But tract computes on
//! the thread that asks, and whatever a load or a run allocates there and then is that model's. A program counts once it
//! makes [`Counting`] its allocator; without it everything costs 0 bytes.
//!
//! An allocation costs an addition and a comparison on numbers of its thread more.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

thread_local! {
    // Plain numbers without destructors: they may be read in the last and the first allocation of a thread.
    static NOW: Cell<i64> = const { Cell::new(0) };
    static PEAK: Cell<i64> = const { Cell::new(0) };
}

/// The system's allocator, and two numbers for each thread.
pub struct Counting;

/// What a piece of work took from the heap.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Taken {
    /// At most at one moment, bytes.
    pub peak: u64,
    /// Afterwards still, bytes; 0 when it freed more than it allocated.
    pub kept: u64,
}

/// Does a piece of work and says what it took. What it frees of others' allocations counts for it: the inputs of a run,
/// which it is given. Not to be nested: the inner one would hide what the outer one had taken before it.
pub fn taken<T>(work: impl FnOnce() -> T) -> (T, Taken) {
    let before = NOW.get();
    PEAK.set(before);
    let done = work();
    let bytes = |now: i64| u64::try_from(now.saturating_sub(before)).unwrap_or(0);
    (done, Taken { peak: bytes(PEAK.get()), kept: bytes(NOW.get()) })
}

fn count(bytes: i64) {
    let now = NOW.get().wrapping_add(bytes);
    NOW.set(now);
    if now > PEAK.get() {
        PEAK.set(now);
    }
}

/// Layouts are at most `isize::MAX` bytes.
fn signed(bytes: usize) -> i64 {
    bytes as i64
}

// There is no safe way to an allocator. Each call goes on to the system's with the very arguments that came; what is
// added neither allocates nor panics.
#[allow(unsafe_code)]
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(signed(layout.size()));
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-signed(layout.size()));
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(signed(size) - signed(layout.size()));
        unsafe { System.realloc(at, layout, size) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[global_allocator]
    static ALLOCATOR: Counting = Counting;

    #[test]
    fn what_a_work_takes_at_most_and_what_it_keeps_are_told_apart() {
        let (kept, taken_by) = taken(|| {
            let large = vec![1u8; 1_000_000];
            let mut kept: Vec<u8> = Vec::with_capacity(10);
            kept.reserve_exact(5_000);
            drop(large);
            kept
        });
        assert_eq!(taken_by, Taken { peak: 1_005_000, kept: 5_000 });
        let (_, after) = taken(|| drop(kept));
        assert_eq!(after, Taken::default());
        let (_, zeroed) = taken(|| drop(vec![0u64; 1_000]));
        assert_eq!(zeroed, Taken { peak: 8_000, kept: 0 });
    }

    #[test]
    fn what_other_threads_take_is_not_counted() {
        let (_, taken_by) = taken(|| {
            std::thread::scope(|s| s.spawn(|| vec![1u8; 10_000_000]).join().map(drop)).unwrap();
        });
        assert!(taken_by.peak < 1_000_000, "{taken_by:?}");
    }
}
