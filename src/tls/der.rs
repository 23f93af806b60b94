//! A reader of DER, the encoding of certificates: element after element, nothing beyond that.
//!
//! It never panics, and gives `None` for what is cut off or too long to be there.

pub(super) const BOOLEAN: u8 = 0x01;
pub(super) const INTEGER: u8 = 0x02;
pub(super) const BIT_STRING: u8 = 0x03;
pub(super) const OCTET_STRING: u8 = 0x04;
pub(super) const OBJECT_ID: u8 = 0x06;
pub(super) const SEQUENCE: u8 = 0x30;
pub(super) const SET: u8 = 0x31;

/// The elements that follow each other in some bytes.
#[derive(Clone, Copy, Debug)]
pub(super) struct Reader<'a>(&'a [u8]);

#[derive(Clone, Copy, Debug)]
pub(super) struct Element<'a> {
    pub(super) tag: u8,
    pub(super) content: &'a [u8],
    /// With tag and length.
    pub(super) whole: &'a [u8],
}

impl<'a> Reader<'a> {
    pub(super) fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub(super) fn is_at_end(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn next(&mut self) -> Option<Element<'a>> {
        let all = self.0;
        let (&tag, rest) = all.split_first()?;
        // Tags of several bytes do not occur in certificates.
        if tag & 0x1f == 0x1f {
            return None;
        }
        let (&first, rest) = rest.split_first()?;
        let (length, rest) = match first {
            0..=0x7f => (usize::from(first), rest),
            0x81..=0x84 => {
                let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
                let length = bytes
                    .iter()
                    .fold(0_usize, |sum, byte| sum << 8 | usize::from(*byte));
                (length, rest)
            }
            _ => return None,
        };
        let (content, rest) = rest.split_at_checked(length)?;
        self.0 = rest;
        Some(Element {
            tag,
            content,
            whole: &all[..all.len() - rest.len()],
        })
    }

    /// The content of the next element, which has this tag.
    pub(super) fn expect(&mut self, tag: u8) -> Option<&'a [u8]> {
        self.next()
            .filter(|element| element.tag == tag)
            .map(|element| element.content)
    }

    /// The content of the next element if it has this tag; otherwise it stays the next.
    pub(super) fn optional(&mut self, tag: u8) -> Option<&'a [u8]> {
        let mut ahead = *self;
        let content = ahead.expect(tag)?;
        *self = ahead;
        Some(content)
    }

    /// The elements inside the next one, which is a sequence.
    pub(super) fn sequence(&mut self) -> Option<Self> {
        self.expect(SEQUENCE).map(Self)
    }
}

/// The bits of a bit string that has whole bytes.
pub(super) fn bytes_of_bits(content: &[u8]) -> Option<&[u8]> {
    let (&unused, bytes) = content.split_first()?;
    (unused == 0).then_some(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn elements_follow_each_other() {
        let long = [&[0x04, 0x81, 0x80][..], &[7; 128]].concat();
        let bytes = [&[0x02, 1, 5][..], &long, &[0x30, 3, 0x02, 1, 9]].concat();
        let mut reader = Reader::new(&bytes);
        assert_eq!(reader.optional(SEQUENCE), None);
        assert_eq!(reader.expect(INTEGER), Some(&[5][..]));
        let element = reader.next().unwrap();
        assert_eq!((element.content.len(), element.whole.len()), (128, 131));
        let mut inner = reader.sequence().unwrap();
        assert_eq!(inner.expect(INTEGER), Some(&[9][..]));
        assert!(reader.is_at_end() && inner.is_at_end());
        assert!(Reader::new(&[0x02, 2, 5]).next().is_none(), "cut off");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut reader = Reader::new(&bytes);
            while let Some(element) = reader.next() {
                prop_assert!(element.content.len() < element.whole.len());
                let inner = Reader::new(element.content).sequence();
                prop_assert!(inner.is_none_or(|inner| inner.0.len() < element.content.len()));
            }
        }
    }
}
