//! The handshake on a new connection: protocol version, cluster, member. Neither side uses the connection before it is done.
//!
//! The dialler opens a stream and sends its hello; the other side checks it and answers with its own; the dialler checks that
//! and confirms with one byte. A side that refuses closes the connection with a [`Refusal`], which the other side reads. Later
//! versions only append to the hello, so that any two versions can read each other's and name what does not fit.

use super::{
    codec::VERSION_LOW,
    error::{NetError, Refusal, Versions},
};
use crate::types::{ClusterId, Identity, MemberId};
use bytes::{Buf, BufMut};
use quinn::{Connection, RecvStream, SendStream};

const MAGIC: [u8; 8] = *b"QRT-PEER";
/// Magic, lowest and highest version, length of what follows.
const START_BYTES: usize = 14;
/// The longest hello of any version.
const BODY_BYTES_MAX: usize = 4_096;
const CONFIRMED: u8 = 1;

/// What each side sends first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Hello {
    pub(super) low: u16,
    pub(super) high: u16,
    pub(super) cluster: ClusterId,
    pub(super) member: MemberId,
    /// A random number of the process: it differs after a restart, and is the same if one process dials twice.
    pub(super) boot: u64,
    pub(super) name: String,
}

impl Hello {
    /// `high` is the newest version that this member speaks.
    pub(super) fn new(identity: Identity, high: u16, boot: u64, name: String) -> Self {
        Self {
            low: VERSION_LOW,
            high,
            cluster: identity.cluster,
            member: identity.member,
            boot,
            name,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let name = self.name.as_bytes();
        let mut bytes = Vec::with_capacity(START_BYTES + 26 + name.len());
        bytes.put_slice(&MAGIC);
        bytes.put_u16_le(self.low);
        bytes.put_u16_le(self.high);
        let length = |length: usize| u16::try_from(length).unwrap_or(u16::MAX);
        bytes.put_u16_le(length(26 + name.len()));
        bytes.put_u64_le(self.cluster.0);
        bytes.put_u64_le(self.member.0);
        bytes.put_u64_le(self.boot);
        bytes.put_u16_le(length(name.len()));
        bytes.put_slice(name);
        bytes
    }

    /// The versions and the length of the body, from the first bytes.
    fn start(mut bytes: &[u8]) -> Result<(u16, u16, usize), Refusal> {
        if bytes.len() < START_BYTES || bytes[..8] != MAGIC {
            return Err(Refusal::Malformed(
                "the connection does not begin with a hello".to_owned(),
            ));
        }
        bytes.advance(8);
        let (low, high, length) = (bytes.get_u16_le(), bytes.get_u16_le(), bytes.get_u16_le());
        if usize::from(length) > BODY_BYTES_MAX {
            return Err(Refusal::Malformed(format!("a hello of {length} bytes")));
        }
        Ok((low, high, usize::from(length)))
    }

    /// The version that both sides use; `theirs` must have one in common.
    pub(super) fn common(&self, theirs: &Self) -> u16 {
        self.high.min(theirs.high)
    }

    /// Refuses a hello that has no version in common, whatever else is wrong with it.
    fn versions(&self, name: &str, low: u16, high: u16) -> Result<(), Refusal> {
        if low <= self.high && high >= self.low && low <= high {
            return Ok(());
        }
        let theirs = Versions {
            name: name.to_owned(),
            low,
            high,
        };
        let ours = Versions {
            name: self.name.clone(),
            low: self.low,
            high: self.high,
        };
        Err(Refusal::Version { theirs, ours })
    }

    fn body(low: u16, high: u16, mut bytes: &[u8]) -> Result<Self, Refusal> {
        let malformed = || Refusal::Malformed("the hello ends too early".to_owned());
        let number = |bytes: &mut &[u8]| bytes.try_get_u64_le().map_err(|_| malformed());
        let cluster = ClusterId(number(&mut bytes)?);
        let member = MemberId(number(&mut bytes)?);
        let boot = number(&mut bytes)?;
        let length = bytes.try_get_u16_le().map_err(|_| malformed())?;
        let name = bytes.get(..usize::from(length)).ok_or_else(malformed)?;
        let name = str::from_utf8(name)
            .map_err(|_| Refusal::Malformed("the name in the hello is not UTF-8".to_owned()))?;
        Ok(Self {
            low,
            high,
            cluster,
            member,
            boot,
            name: name.to_owned(),
        })
    }
}

/// Closes `connection` with the reason.
pub(super) fn refuse(connection: &Connection, refusal: Refusal) -> NetError {
    connection.close(refusal.code().into(), refusal.to_string().as_bytes());
    refusal.into()
}

/// The handshake as the dialler. `check` decides on the other side's hello.
pub(super) async fn initiate(
    connection: &Connection,
    ours: &Hello,
    check: impl AsyncFnOnce(&Hello) -> Result<(), Refusal>,
) -> Result<Hello, NetError> {
    let (mut send, mut receive) = connection.open_bi().await?;
    send.write_all(&ours.encode()).await?;
    let theirs = read(connection, &mut receive, ours).await?;
    check(&theirs)
        .await
        .map_err(|refusal| refuse(connection, refusal))?;
    send.write_all(&[CONFIRMED]).await?;
    send.finish().unwrap_or_default();
    Ok(theirs)
}

/// The handshake as the side that was dialled. `check` decides on the dialler's hello.
pub(super) async fn respond(
    connection: &Connection,
    ours: &Hello,
    check: impl AsyncFnOnce(&Hello) -> Result<(), Refusal>,
) -> Result<Hello, NetError> {
    let (mut send, mut receive): (SendStream, RecvStream) = connection.accept_bi().await?;
    let theirs = read(connection, &mut receive, ours).await?;
    check(&theirs)
        .await
        .map_err(|refusal| refuse(connection, refusal))?;
    send.write_all(&ours.encode()).await?;
    send.finish().unwrap_or_default();
    let mut confirmed = [0];
    receive.read_exact(&mut confirmed).await?;
    if confirmed == [CONFIRMED] {
        Ok(theirs)
    } else {
        let refusal = Refusal::Malformed("the hello was not confirmed".to_owned());
        Err(refuse(connection, refusal))
    }
}

async fn read(
    connection: &Connection,
    stream: &mut RecvStream,
    ours: &Hello,
) -> Result<Hello, NetError> {
    let mut start = [0; START_BYTES];
    stream.read_exact(&mut start).await?;
    let refused = |refusal| refuse(connection, refusal);
    let (low, high, length) = Hello::start(&start).map_err(refused)?;
    let mut body = vec![0; length];
    stream.read_exact(&mut body).await?;
    checked(ours, low, high, &body).map_err(refused)
}

/// The other side's hello, if a version is common.
fn checked(ours: &Hello, low: u16, high: u16, body: &[u8]) -> Result<Hello, Refusal> {
    let theirs = Hello::body(low, high, body);
    let name = theirs.as_ref().map_or("", |theirs| &theirs.name);
    ours.versions(name, low, high)?;
    theirs
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn decode(bytes: &[u8]) -> Result<Hello, Refusal> {
        let (low, high, length) = Hello::start(bytes)?;
        let body = bytes[START_BYTES..].get(..length);
        checked(&hello(), low, high, body.unwrap_or(&bytes[START_BYTES..]))
    }

    fn hello() -> Hello {
        let identity = Identity {
            cluster: ClusterId(7),
            member: MemberId(9),
        };
        Hello::new(identity, 2, 11, "n1".to_owned())
    }

    #[test]
    fn the_hello_is_what_the_format_page_says() {
        let bytes = hello().encode();
        assert_eq!(bytes[..14], *b"QRT-PEER\x01\x00\x02\x00\x1c\x00");
        assert_eq!(bytes.len(), 14 + 26 + 2);
        assert_eq!(decode(&bytes).unwrap(), hello());
    }

    #[test]
    fn what_a_later_version_appends_is_skipped() {
        let mut bytes = hello().encode();
        bytes[12] += 3;
        bytes.extend_from_slice(b"new");
        assert_eq!(decode(&bytes).unwrap(), hello());
    }

    #[test]
    fn two_members_speak_the_newest_version_that_both_know() {
        let mut older = hello();
        older.high = 1;
        assert_eq!(hello().common(&older), 1);
        assert_eq!(older.common(&hello()), 1);
        assert_eq!(hello().common(&hello()), 2);
        assert_eq!(decode(&older.encode()).unwrap(), older, "it may connect");
    }

    #[test]
    fn a_version_that_is_not_common_names_both_sides_and_whom_to_upgrade() {
        let mut newer = hello();
        newer.name = "n2".to_owned();
        (newer.low, newer.high) = (5, 6);
        for (name, shown) in [("n2", "member \"n2\""), ("", "the other side")] {
            newer.name = name.to_owned();
            let text = decode(&newer.encode()).unwrap_err().to_string();
            let expected = format!(
                "no common peer protocol version: {shown} speaks 5 to 6, member \"n1\" speaks 1 to 2; upgrade member \"n1\""
            );
            assert_eq!(text, expected);
        }
        let older = checked(&newer, 1, 2, &hello().encode()[START_BYTES..]);
        let text = older.unwrap_err().to_string();
        assert!(text.ends_with("; upgrade member \"n1\""), "{text}");
    }

    proptest! {
        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..100), keep in any::<bool>()) {
            let mut all = hello().encode();
            all.truncate(if keep { START_BYTES } else { 0 });
            all.extend_from_slice(&bytes);
            drop(decode(&all));
        }
    }
}
