//! How much memory a parser asks for: a few bytes that make it ask for gigabytes are an attack.

use std::{
    alloc::{GlobalAlloc, Layout, System},
    cell::Cell,
};

struct Meter;

thread_local! {
    static ASKED: Cell<usize> = const { Cell::new(0) };
}

#[global_allocator]
static METER: Meter = Meter;

// SAFETY: every call is passed on unchanged to the system's allocator; the counter allocates
// nothing, because a constant cell without a destructor needs no registration.
unsafe impl GlobalAlloc for Meter {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: the caller's promises about `layout` are the system allocator's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        note(layout.size());
        // SAFETY: as above.
        unsafe { System.alloc_zeroed(layout) }
    }

    unsafe fn realloc(&self, old: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        note(size.saturating_sub(layout.size()));
        // SAFETY: `old` came from the system's allocator by `alloc` above.
        unsafe { System.realloc(old, layout, size) }
    }

    unsafe fn dealloc(&self, old: *mut u8, layout: Layout) {
        // SAFETY: as above.
        unsafe { System.dealloc(old, layout) }
    }
}

fn note(bytes: usize) {
    // A thread that is ending has no counter any more, and nothing left to measure.
    let _ = ASKED.try_with(|asked| asked.set(asked.get().saturating_add(bytes)));
}

/// Runs `parse` and asserts that it asked for at most `base` bytes and `factor` per byte of input.
pub(crate) fn bounded<T>(input: &[u8], base: usize, factor: usize, parse: impl FnOnce() -> T) -> T {
    let before = ASKED.with(Cell::get);
    let parsed = parse();
    let asked = ASKED.with(Cell::get) - before;
    let bound = base + factor * input.len();
    assert!(asked <= bound, "{asked} bytes asked for {} bytes of input", input.len());
    parsed
}
