//! The growth of the lists in nodes: with little spare capacity, because there are many small ones.

/// Makes room for `extra` more items, and for `spare` beyond them if it has to move at all.
pub(super) fn grow<T>(vec: &mut Vec<T>, extra: usize, spare: usize) {
    if vec.capacity() - vec.len() < extra {
        vec.reserve_exact(extra + spare);
    }
}
