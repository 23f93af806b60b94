//! Counts the operations and compares of an encoded transaction before it is decoded.
//!
//! Decoding makes tens of bytes of each operation, however short it is on the wire: a million operations of two bytes took more
//! than a second. This walk over the protobuf costs a few nanoseconds a field, allocates a few bytes for each nested
//! transaction, and does not recurse. It judges nothing else: what is malformed is left for the decoder to refuse.

use super::{KvError, check::TxnSize};

/// Field of `etcdserverpb.TxnRequest`.
pub const COMPARE: u64 = 1;
/// Field of `etcdserverpb.TxnRequest`.
pub const SUCCESS: u64 = 2;
/// Field of `etcdserverpb.TxnRequest`.
pub const FAILURE: u64 = 3;
/// Field of `etcdserverpb.RequestOp`: the nested transaction.
pub const NESTED: u64 = 4;

/// Refuses the protobuf of a `TxnRequest` that holds more operations or compares, or nests deeper, than
/// [`check::txn`](super::check::txn) allows: to be called before decoding. Returns how many levels of transactions there are.
pub fn check(request: &[u8], ops_max: usize) -> Result<usize, KvError> {
    let mut size = TxnSize::new(ops_max);
    let mut nested = vec![(request, 1)];
    let mut levels = 0;
    while let Some((txn, level)) = nested.pop() {
        levels = levels.max(level);
        let mut lists = [0_usize; 3];
        for (number, bytes) in Fields::new(txn) {
            if matches!(number, COMPARE | SUCCESS | FAILURE) {
                lists[usize::from(number == SUCCESS) + 2 * usize::from(number == FAILURE)] += 1;
            }
            if matches!(number, SUCCESS | FAILURE) {
                let inner = Fields::new(bytes).filter(|(number, _)| *number == NESTED);
                nested.extend(inner.map(|(_, txn)| (txn, level + 1)));
            }
        }
        size.add_level(level, lists)?;
    }
    Ok(levels)
}

/// The length-delimited fields of a message, as (number, content). Skips all others. Ends where the bytes are malformed.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    /// The message from the newest field on.
    from_last: &'a [u8],
    rest: &'a [u8],
}

impl<'a> Iterator for Fields<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let mut groups = 0_u32;
        let mut rest = self.rest;
        while !rest.is_empty() {
            let start = rest;
            let tag = varint(&mut rest)?;
            match tag & 7 {
                0 => {
                    varint(&mut rest)?;
                }
                1 => {
                    take(&mut rest, 8)?;
                }
                2 => {
                    let len = usize::try_from(varint(&mut rest)?).ok()?;
                    let content = take(&mut rest, len)?;
                    if groups == 0 {
                        (self.from_last, self.rest) = (start, rest);
                        return Some((tag >> 3, content));
                    }
                }
                3 => groups += 1,
                4 => groups = groups.checked_sub(1)?,
                5 => {
                    take(&mut rest, 4)?;
                }
                _ => return None,
            }
        }
        None
    }
}

impl<'a> Fields<'a> {
    /// The fields of an encoded message.
    pub fn new(message: &'a [u8]) -> Self {
        Self {
            from_last: message,
            rest: message,
        }
    }

    /// The newest field with its tag and length.
    pub fn last_field(&self) -> &'a [u8] {
        &self.from_last[..self.from_last.len() - self.rest.len()]
    }

    /// What follows the newest field: if there is no next one, bytes that are no length-delimited field.
    pub fn rest(&self) -> &'a [u8] {
        self.rest
    }
}

fn take<'a>(rest: &mut &'a [u8], len: usize) -> Option<&'a [u8]> {
    let (taken, after) = rest.split_at_checked(len)?;
    *rest = after;
    Some(taken)
}

fn varint(rest: &mut &[u8]) -> Option<u64> {
    let mut value = 0;
    for shift in (0..64).step_by(7) {
        let (&byte, after) = rest.split_first()?;
        *rest = after;
        value |= u64::from(byte & 0x7f) << shift;
        if byte < 0x80 {
            return Some(value);
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::super::check::{NESTING_MAX, OPERATIONS_MAX};
    use super::*;

    const TOO_MANY: Result<usize, KvError> = Err(KvError::TooManyOps { max: 128 });

    fn field(number: u8, content: &[u8]) -> Vec<u8> {
        let mut out = vec![number << 3 | 2];
        crate::kv::record::put_varint(&mut out, content.len() as u64);
        out.extend_from_slice(content);
        out
    }

    /// `levels` transactions, each nested in the success branch of the one around it.
    fn chain(levels: usize) -> Vec<u8> {
        (1..levels).fold(Vec::new(), |txn, _| field(2, &field(4, &txn)))
    }

    #[test]
    fn operations_compares_and_levels_are_counted() {
        let list = |number: u8, count: usize| field(number, b"").repeat(count);
        for number in 1..=3 {
            assert_eq!(check(&list(number, 128), 128), Ok(1));
            assert_eq!(check(&list(number, 129), 128), TOO_MANY, "field {number}");
        }
        for (levels, expected) in [
            (60, Ok(60)),
            (NESTING_MAX, Ok(NESTING_MAX)),
            (NESTING_MAX + 1, TOO_MANY),
            (500, TOO_MANY),
        ] {
            assert_eq!(check(&chain(levels), 128), expected, "{levels} levels");
        }
        let full = field(2, &field(4, &list(2, 128)));
        let lists = OPERATIONS_MAX / 128;
        let around = |count: usize| field(3, &field(4, &full.repeat(count)));
        assert_eq!(check(&around(lists / 4).repeat(3), 128), Ok(3));
        assert_eq!(check(&around(lists / 4).repeat(4), 128), TOO_MANY);
    }

    #[test]
    fn malformed_bytes_end_the_walk_and_groups_hide_nothing() {
        for bytes in [&b"\x12"[..], b"\x12\x7f\x00", b"\xff\xff", b"\x0c", b"\x0f"] {
            assert_eq!(check(bytes, 128), Ok(1), "{bytes:?}");
        }
        let mut hidden = b"\x2b\x12\x00\x08\x01\x2c".to_vec(); // group 5 with two fields in it
        hidden.extend(field(2, b"").repeat(129));
        assert_eq!(check(&hidden, 128), TOO_MANY);
    }
}
