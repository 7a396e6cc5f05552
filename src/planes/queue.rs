//! Bounded queues between threads, and the bell that wakes the turn loop.
//!
//! A pigeon-hole and a bell: whoever puts something in rings; the loop first silences the bell,
//! then empties every pigeon-hole, so that nothing put in later is slept over.
//!
//! Awkward cases: a thread with real-time priority must never wait for one without (the ordinary
//! thread may have been pushed off the processor while it holds the lock), so such a thread uses
//! the `try_` calls and comes back a millisecond later; a panic of one thread must not take the
//! others with it, so a poisoned lock is used as it is (the queue is never left half changed).

use std::{
    collections::VecDeque,
    io, mem,
    sync::{
        Arc, Mutex, MutexGuard, OnceLock, PoisonError, TryLockError,
        atomic::{AtomicBool, Ordering},
    },
};

/// Wakes the turn loop. Cheap to ring often: only the first ring after a silence is a system call.
#[derive(Clone, Default)]
pub(crate) struct Bell(Arc<BellState>);

#[derive(Default)]
struct BellState {
    rung: AtomicBool,
    waker: OnceLock<mio::Waker>,
}

impl std::fmt::Debug for Bell {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Bell").field("rung", &self.0.rung).finish_non_exhaustive()
    }
}

impl Bell {
    /// Hangs the bell into a poll. A bell is hung once; rings from before are not lost.
    pub(crate) fn hang(&self, registry: &mio::Registry, token: mio::Token) -> io::Result<()> {
        let waker = mio::Waker::new(registry, token)?;
        if self.0.waker.set(waker).is_err() {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        if self.0.rung.load(Ordering::Acquire) {
            self.wake();
        }
        Ok(())
    }

    pub(crate) fn ring(&self) {
        // BELL: pairs with `silence`; whoever sees false there sees what was queued before.
        if !self.0.rung.swap(true, Ordering::AcqRel) {
            self.wake();
        }
    }

    fn wake(&self) {
        if let Some(waker) = self.0.waker.get() {
            // Fails only when the eventfd is gone, and with it the loop.
            let _ = waker.wake();
        }
    }

    /// To be called before the queues are emptied.
    pub(crate) fn silence(&self) {
        // BELL: pairs with `ring`.
        self.0.rung.swap(false, Ordering::AcqRel);
    }
}

/// A bounded queue shared by threads. Full means refused, never grown.
#[derive(Debug)]
pub(crate) struct Queue<T> {
    items: Mutex<VecDeque<T>>,
    capacity: usize,
}

impl<T> Queue<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        // Room for everything from the start: pushing never allocates.
        Self { items: Mutex::new(VecDeque::with_capacity(capacity)), capacity }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<T>> {
        self.items.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn try_lock(&self) -> Option<MutexGuard<'_, VecDeque<T>>> {
        match self.items.try_lock() {
            Ok(guard) => Some(guard),
            Err(TryLockError::Poisoned(e)) => Some(e.into_inner()),
            Err(TryLockError::WouldBlock) => None,
        }
    }

    /// Gives the item back when the queue is full.
    pub(crate) fn push(&self, item: T) -> Result<(), T> {
        let mut items = self.lock();
        if items.len() >= self.capacity {
            return Err(item);
        }
        items.push_back(item);
        Ok(())
    }

    /// Takes everything: `into` is empty before and holds the items after.
    pub(crate) fn take(&self, into: &mut VecDeque<T>) {
        debug_assert!(into.is_empty());
        if into.capacity() < self.capacity {
            into.reserve(self.capacity);
        }
        mem::swap(&mut *self.lock(), into);
    }

    /// As [`Queue::take`], without waiting; false when somebody holds the lock.
    pub(crate) fn try_take(&self, into: &mut VecDeque<T>) -> bool {
        debug_assert!(into.is_empty());
        if into.capacity() < self.capacity {
            into.reserve(self.capacity);
        }
        self.try_lock().map(|mut items| mem::swap(&mut *items, into)).is_some()
    }

    /// Moves as many items as fit, without waiting; false when somebody holds the lock.
    pub(crate) fn try_push_all(&self, from: &mut VecDeque<T>) -> bool {
        let Some(mut items) = self.try_lock() else { return false };
        while items.len() < self.capacity {
            let Some(item) = from.pop_front() else { break };
            items.push_back(item);
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_queue_gives_the_item_back() {
        let queue = Queue::new(2);
        assert_eq!(queue.push(1), Ok(()));
        assert_eq!(queue.push(2), Ok(()));
        assert_eq!(queue.push(3), Err(3));
        let mut taken = VecDeque::new();
        queue.take(&mut taken);
        assert_eq!(taken, [1, 2]);
        assert_eq!(queue.push(3), Ok(()));
    }

    #[test]
    fn the_real_time_side_never_waits() {
        let queue = Queue::new(2);
        let guard = queue.lock();
        let mut items = VecDeque::from([1, 2, 3]);
        assert!(!queue.try_push_all(&mut items));
        assert!(!queue.try_take(&mut VecDeque::new()));
        drop(guard);
        assert!(queue.try_push_all(&mut items));
        assert_eq!(items, [3], "what does not fit stays");
    }

    #[test]
    fn a_ring_before_the_bell_hangs_is_not_lost() {
        let mut poll = mio::Poll::new().unwrap();
        let bell = Bell::default();
        bell.ring();
        bell.hang(poll.registry(), mio::Token(7)).unwrap();
        let mut events = mio::Events::with_capacity(4);
        poll.poll(&mut events, Some(std::time::Duration::from_secs(5))).unwrap();
        assert_eq!(events.iter().map(|e| e.token().0).collect::<Vec<_>>(), [7]);
    }
}
