//! Leases, users, roles, alarms and members: buckets with an item for each.

use super::{
    error::{ItemFault, StoreError, shown},
    meta, names,
    read::Store,
};
use crate::{
    bolt::{Items, Source},
    messages::{AlarmKind, AlarmMember, Lease, Member, Role, User, decode_value, from_json},
};
use prost::Message;
use std::iter::FusedIterator;

/// The values of a bucket in the order of their keys. Ends after an error. In memory is one of them, beside what [`Items`] holds.
#[derive(Debug)]
pub struct Values<'a, S, T> {
    bucket: &'static str,
    items: Option<Items<'a, S>>,
    parse: fn(&[u8], &[u8]) -> Result<T, ItemFault>,
}

impl<S: Source, T> Values<'_, S, T> {
    fn read(&mut self) -> Result<Option<T>, StoreError> {
        let Some((key, value)) = self.items.as_mut().and_then(Iterator::next).transpose()? else {
            return Ok(None);
        };
        let parsed = (self.parse)(&key, &value);
        let value = parsed.map_err(|fault| StoreError::item(self.bucket, &key, fault))?;
        Ok(Some(value))
    }
}

impl<S: Source, T> Iterator for Values<'_, S, T> {
    type Item = Result<T, StoreError>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read();
        if !matches!(read, Ok(Some(_))) {
            self.items = None;
        }
        read.transpose()
    }
}

impl<S: Source, T> FusedIterator for Values<'_, S, T> {}

impl<S: Source> Store<S> {
    /// Ordered by their ids as unsigned numbers.
    pub fn leases(&self) -> Result<Values<'_, S, Lease>, StoreError> {
        self.values(names::LEASE, lease)
    }

    /// Ordered by their names.
    pub fn users(&self) -> Result<Values<'_, S, User>, StoreError> {
        self.values(names::USERS, user)
    }

    /// Ordered by their names.
    pub fn roles(&self) -> Result<Values<'_, S, Role>, StoreError> {
        self.values(names::ROLES, role)
    }

    pub fn alarms(&self) -> Result<Values<'_, S, AlarmMember>, StoreError> {
        self.values(names::ALARM, alarm)
    }

    pub fn members(&self) -> Result<Values<'_, S, Member>, StoreError> {
        self.values(names::MEMBERS, member)
    }

    /// The ids of members that were removed, which never join again.
    pub fn removed(&self) -> Result<Values<'_, S, u64>, StoreError> {
        // etcd does not read the values.
        self.values(names::REMOVED, |key, _| member_id(key))
    }

    fn values<T>(
        &self,
        bucket: &'static str,
        parse: fn(&[u8], &[u8]) -> Result<T, ItemFault>,
    ) -> Result<Values<'_, S, T>, StoreError> {
        Ok(Values {
            bucket,
            items: self.items(bucket)?,
            parse,
        })
    }
}

/// Decodes a value of which nothing is lost.
fn decode<M: Message + Default>(what: &'static str, value: &[u8]) -> Result<M, ItemFault> {
    let message: M = decode_value(what, value)?;
    if message.encoded_len() != value.len() || message.encode_to_vec() != value {
        let bytes = value.len();
        return Err(ItemFault::NotCanonical { what, bytes });
    }
    Ok(message)
}

fn lease(key: &[u8], value: &[u8]) -> Result<Lease, ItemFault> {
    let id = meta::number(key)?;
    let lease: Lease = decode("lease", value)?;
    if lease.id.cast_unsigned() != id {
        let found = format!("lease {:x}", lease.id);
        return Err(ItemFault::OtherName { found });
    }
    Ok(lease)
}

fn user(key: &[u8], value: &[u8]) -> Result<User, ItemFault> {
    let user: User = decode("user", value)?;
    check_name("user", key, &user.name)?;
    Ok(user)
}

fn role(key: &[u8], value: &[u8]) -> Result<Role, ItemFault> {
    let role: Role = decode("role", value)?;
    check_name("role", key, &role.name)?;
    Ok(role)
}

fn check_name(what: &str, key: &[u8], name: &[u8]) -> Result<(), ItemFault> {
    if key != name {
        let found = format!("{what} \"{}\"", shown(name));
        return Err(ItemFault::OtherName { found });
    }
    Ok(())
}

fn alarm(key: &[u8], value: &[u8]) -> Result<AlarmMember, ItemFault> {
    let alarm: AlarmMember = decode("alarm", key)?;
    if !value.is_empty() {
        let bytes = value.len();
        return Err(ItemFault::AlarmValue { bytes });
    }
    match AlarmKind::try_from(alarm.alarm) {
        Ok(AlarmKind::NoSpace | AlarmKind::Corrupt) => Ok(alarm),
        Ok(AlarmKind::None) | Err(_) => Err(ItemFault::AlarmKind { kind: alarm.alarm }),
    }
}

fn member(key: &[u8], value: &[u8]) -> Result<Member, ItemFault> {
    let id = member_id(key)?;
    let member: Member = from_json("member", value)?;
    if member.id != id {
        let found = format!("member {:x}", member.id);
        return Err(ItemFault::OtherName { found });
    }
    Ok(member)
}

/// An id as etcd writes it: hexadecimal without zeros in front.
fn member_id(key: &[u8]) -> Result<u64, ItemFault> {
    let text = str::from_utf8(key).ok();
    let id = text.and_then(|text| u64::from_str_radix(text, 16).ok());
    id.filter(|id| format!("{id:x}").as_bytes() == key)
        .ok_or(ItemFault::HexId)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_are_hexadecimal() {
        assert_eq!(member_id(b"a1").expect("an id"), 0xa1);
        assert_eq!(member_id(b"ffffffffffffffff").expect("an id"), u64::MAX);
        for key in [
            &b""[..],
            b"0a1",
            b"A1",
            b"+a1",
            b"g",
            b"10000000000000000",
            b"\xff",
        ] {
            assert!(matches!(member_id(key), Err(ItemFault::HexId)), "{key:?}");
        }
    }

    #[test]
    fn a_value_belongs_to_its_key() {
        let value = Lease {
            id: -2,
            ttl: 10,
            remaining_ttl: 0,
        };
        let value = value.encode_to_vec();
        assert_eq!(
            lease(&(-2_i64).to_be_bytes(), &value).expect("a lease").ttl,
            10
        );
        let other = lease(&2_i64.to_be_bytes(), &value);
        assert!(matches!(other, Err(ItemFault::OtherName { .. })));
        assert!(matches!(lease(b"2", &value), Err(ItemFault::Length { .. })));
        let unknown = [value.as_slice(), b"\x40\x01"].concat();
        let unknown = lease(&(-2_i64).to_be_bytes(), &unknown);
        assert!(matches!(unknown, Err(ItemFault::NotCanonical { .. })));
        assert!(user(b"a", b"\x0a\x01a").is_ok());
        assert!(matches!(
            user(b"b", b"\x0a\x01a"),
            Err(ItemFault::OtherName { .. })
        ));
        assert!(matches!(
            role(b"b", b"\x0a\x01a"),
            Err(ItemFault::OtherName { .. })
        ));
        assert!(matches!(
            role(b"b", b"\x0a\x02a"),
            Err(ItemFault::Message(_))
        ));
        assert!(matches!(
            member(b"1", br#"{"id":2}"#),
            Err(ItemFault::OtherName { .. })
        ));
    }

    #[test]
    fn alarms_are_keys() {
        assert_eq!(
            alarm(b"\x08\x07\x10\x01", b"").expect("an alarm").member_id,
            7
        );
        let fault = |key: &[u8], value: &[u8]| alarm(key, value).expect_err("a fault");
        assert!(matches!(
            fault(b"\x08\x07\x10\x01", b"x"),
            ItemFault::AlarmValue { bytes: 1 }
        ));
        assert!(matches!(
            fault(b"\x08\x07\x10\x03", b""),
            ItemFault::AlarmKind { kind: 3 }
        ));
        assert!(matches!(
            fault(b"\x08\x07", b""),
            ItemFault::AlarmKind { kind: 0 }
        ));
    }
}
