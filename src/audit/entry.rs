//! What a line says. Keys and names are copied, and cut at a length that is enough to recognise them.

use std::{borrow::Cow, net::SocketAddr, sync::Arc, time::Duration};

/// Bytes of a key, of a name or of another text that a line shows.
const SHOWN_BYTES_MAX: usize = 1_024;

/// Bytes of the path of an unknown method that a line shows.
const METHOD_BYTES_MAX: usize = 256;

/// Operations of a transaction that a line shows.
pub(super) const OPS_MAX: usize = 64;

/// What kind of call a line is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// It changes no state.
    Read,
    /// It changes keys, leases, members or alarms.
    Change,
    /// A login, or a change of users and roles.
    Auth,
}

/// What is known of a call when it begins.
#[derive(Clone, Debug)]
pub struct Call {
    /// Its gRPC path.
    pub(super) method: Cow<'static, str>,
    pub(super) kind: Kind,
    /// The user that the token names.
    pub(super) user: Option<Arc<str>>,
    /// The common name in the client's certificate.
    pub(super) cn: Option<Arc<str>>,
    /// The client's address; `None` for a Unix socket.
    pub(super) peer: Option<SocketAddr>,
}

impl Call {
    /// A call of a known method.
    pub fn new(
        method: &'static str,
        kind: Kind,
        user: Option<&Arc<str>>,
        peer: Option<SocketAddr>,
    ) -> Self {
        Self {
            method: method.into(),
            kind,
            user: user.map(shared),
            cn: None,
            peer,
        }
    }

    /// The same call, of a client whose certificate has this common name; an empty one is none.
    #[must_use]
    pub fn certified(self, name: Option<&Arc<str>>) -> Self {
        let cn = name.filter(|name| !name.is_empty()).map(shared);
        Self { cn, ..self }
    }

    /// The same call, of an unknown method: the client may send any path.
    #[must_use]
    pub fn of_unknown(self, path: &str) -> Self {
        let method = cut(path, METHOD_BYTES_MAX).to_owned().into();
        Self { method, ..self }
    }

    fn bytes(&self) -> usize {
        let method = match &self.method {
            Cow::Borrowed(_) => 0,
            Cow::Owned(path) => path.capacity(),
        };
        let name = |name: &Option<Arc<str>>| name.as_ref().map_or(0, |name| name.len());
        method + name(&self.user) + name(&self.cn)
    }
}

/// A name, or the beginning of a long one.
fn shared(name: &Arc<str>) -> Arc<str> {
    match cut(name, SHOWN_BYTES_MAX) {
        whole if whole.len() == name.len() => name.clone(),
        beginning => beginning.into(),
    }
}

/// The beginning of a text: whole letters.
fn cut(text: &str, bytes_max: usize) -> &str {
    &text[..text.floor_char_boundary(bytes_max)]
}

/// What a call is about.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Subject {
    /// The range of a request, or of a permission.
    pub range: Option<Target>,
    /// The lease, if there is one.
    pub lease: i64,
    /// Its time to live, in seconds.
    pub ttl: i64,
    pub txn: Option<TxnSubject>,
    /// The user that a call is about.
    pub target_user: Option<Shown>,
    /// Whether a login named a user that exists.
    pub unknown_user: bool,
    pub role: Option<Shown>,
    /// `read`, `write` or `readwrite`.
    pub permission: Option<&'static str>,
    /// What else there is to say: a name and a text that no secret can be in.
    pub other: Option<(&'static str, Shown)>,
}

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TxnSubject {
    /// How many compares it has.
    pub compares: usize,
    /// Its first operations.
    pub ops: Vec<(&'static str, Target)>,
    /// How many it has beside those.
    pub ops_left_out: usize,
}

impl TxnSubject {
    pub fn add(&mut self, op: &'static str, key: &[u8], range_end: &[u8]) {
        if self.ops.len() < OPS_MAX {
            self.ops.push((op, Target::new(key, range_end)));
        } else {
            self.ops_left_out += 1;
        }
    }
}

/// A range of keys.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Target {
    pub(super) key: Shown,
    pub(super) range_end: Shown,
}

/// The beginning of a byte string, and its length.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Shown {
    pub(super) bytes: Box<[u8]>,
    pub(super) len: usize,
}

impl Shown {
    fn new(bytes: &[u8]) -> Self {
        Self {
            bytes: bytes[..bytes.len().min(SHOWN_BYTES_MAX)].into(),
            len: bytes.len(),
        }
    }
}

impl From<&str> for Shown {
    fn from(text: &str) -> Self {
        Self::new(text.as_bytes())
    }
}

impl Target {
    /// A key, and a range's end if there is one.
    pub fn new(key: &[u8], range_end: &[u8]) -> Self {
        Self {
            key: Shown::new(key),
            range_end: Shown::new(range_end),
        }
    }

    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.key.bytes.len() + self.range_end.bytes.len()
    }
}

impl Subject {
    /// A request on one range.
    pub fn of_range(key: &[u8], range_end: &[u8]) -> Self {
        Self {
            range: Some(Target::new(key, range_end)),
            ..Self::default()
        }
    }

    pub(super) fn bytes(&self) -> usize {
        let text = |text: &Option<Shown>| text.as_ref().map_or(0, |text| text.bytes.len());
        let ops = self.txn.iter().flat_map(|txn| &txn.ops);
        let ops: usize = ops
            .map(|(_, target)| size_of::<usize>() * 2 + target.bytes())
            .sum();
        let range = self.range.as_ref().map_or(0, Target::bytes);
        let other = self.other.as_ref().map_or(0, |(_, text)| text.bytes.len());
        ops + range + other + text(&self.target_user) + text(&self.role)
    }
}

/// How a call ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// gRPC's name of its code.
    pub code: &'static str,
    /// Why it was refused for who asked; `None` if it was not.
    pub refused: Option<&'static str>,
}

impl Ended {
    /// It was carried out.
    pub const OK: Self = Self {
        code: "OK",
        refused: None,
    };

    pub(super) const CANCELED: Self = Self {
        code: "Canceled",
        refused: None,
    };
}

/// A line that is complete, and not yet text.
#[derive(Clone, Debug)]
pub(super) struct Entry {
    /// Since 1970.
    pub(super) at: Duration,
    pub(super) id: u64,
    pub(super) duration: Duration,
    pub(super) call: Call,
    pub(super) subject: Subject,
    pub(super) ended: Ended,
    pub(super) revision: i64,
}

impl Entry {
    /// What it takes in memory, in bytes. Its names may be shared with others, or be the last ones; they count.
    pub(super) fn bytes(&self) -> usize {
        size_of::<Self>() + self.call.bytes() + self.subject.bytes()
    }
}
