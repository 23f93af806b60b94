//! What is written into a database, and the two passes that write it.

use super::{
    error::{ItemFault, StoreError},
    json::as_go,
    meta::{Auth, Cluster, Meta},
    names,
    record::{self, Ascending, RecordRef},
    revision::{Revision, RevisionKey},
};
use crate::{
    bolt::{BoltError, Layout, Measure, Writer},
    messages::{AlarmMember, Lease, Member, MessageError, Role, User, to_json},
};
use prost::Message;
use serde::Serialize;
use std::io::Write;

/// The contents of a store. Both passes ask for each part once, and must find the same.
///
/// Parts that can be large are handed over one by one, and an error of the receiver must be passed on. Their order matters, as
/// said below; that of the vectors does not.
pub trait Contents {
    type Error: From<StoreError>;

    fn alarms(&self) -> Result<Vec<AlarmMember>, Self::Error>;

    fn auth(&self) -> Result<Auth, Self::Error>;

    /// In the order of their names.
    fn roles(
        &self,
        each: &mut dyn FnMut(&Role) -> Result<(), Self::Error>,
    ) -> Result<(), Self::Error>;

    /// In the order of their names.
    fn users(
        &self,
        each: &mut dyn FnMut(&User) -> Result<(), Self::Error>,
    ) -> Result<(), Self::Error>;

    fn cluster(&self) -> Result<Cluster, Self::Error>;

    /// In the order of their revisions.
    fn records(
        &self,
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<(), Self::Error>,
    ) -> Result<(), Self::Error>;

    /// In the order of their ids as unsigned numbers.
    fn leases(
        &self,
        each: &mut dyn FnMut(&Lease) -> Result<(), Self::Error>,
    ) -> Result<(), Self::Error>;

    fn members(&self) -> Result<Vec<Member>, Self::Error>;

    /// The ids of members that were removed.
    fn removed(&self) -> Result<Vec<u64>, Self::Error>;

    /// Since 3.6 all of it is there, but for compactions if there were none. [`STORAGE_VERSION`](super::STORAGE_VERSION) is what
    /// both 3.6 and 3.7 take. `etcdutl snapshot restore` sets index and term itself.
    fn meta(&self) -> Result<Meta, Self::Error>;
}

/// The first pass: measures the file.
pub fn export_layout<C: Contents>(contents: &C) -> Result<Layout, C::Error> {
    let mut measure = Measure::new();
    write_all(contents, &mut measure)?;
    Ok(measure.finish().map_err(StoreError::from)?)
}

/// The second pass: writes the file, as a snapshot with its SHA-256. If the contents have changed since the first pass, it ends
/// with [`BoltError::ContentsChanged`], and what was written has no hash.
pub fn export<C: Contents, W: Write>(contents: &C, layout: Layout, out: W) -> Result<W, C::Error> {
    let mut writer = Writer::new(out, layout).map_err(StoreError::from)?;
    write_all(contents, &mut writer)?;
    Ok(writer.finish().map_err(StoreError::from)?)
}

/// A pass of `bolt`.
trait Pass {
    fn add_bucket(&mut self, name: &str) -> Result<(), BoltError>;
    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), BoltError>;
}

impl Pass for Measure {
    fn add_bucket(&mut self, name: &str) -> Result<(), BoltError> {
        self.bucket(name.as_bytes())
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), BoltError> {
        self.item(key, value.len() as u64)
    }
}

impl<W: Write> Pass for Writer<W> {
    fn add_bucket(&mut self, name: &str) -> Result<(), BoltError> {
        self.bucket(name.as_bytes())
    }

    fn add(&mut self, key: &[u8], value: &[u8]) -> Result<(), BoltError> {
        self.item(key, &[value])
    }
}

/// Hands over all buckets in their order. etcd expects each of them, be it empty.
fn write_all<C: Contents>(contents: &C, pass: &mut impl Pass) -> Result<(), C::Error> {
    write_items(pass, names::ALARM, alarm_items(contents.alarms()?))?;
    write_items(pass, names::AUTH, auth_items(contents.auth()?))?;

    begin(pass, names::ROLES)?;
    contents.roles(&mut |role| Ok(add(pass, &role.name, &role.encode_to_vec())?))?;
    begin(pass, names::USERS)?;
    contents.users(&mut |user| Ok(add(pass, &user.name, &user.encode_to_vec())?))?;

    write_items(pass, names::CLUSTER, cluster_items(contents.cluster()?)?)?;
    write_records(contents, pass)?;

    begin(pass, names::LEASE)?;
    contents
        .leases(&mut |lease| Ok(add(pass, &lease.id.to_be_bytes(), &lease.encode_to_vec())?))?;

    write_items(pass, names::MEMBERS, member_items(&contents.members()?)?)?;
    write_items(pass, names::REMOVED, removed_items(&contents.removed()?))?;
    write_items(pass, names::META, meta_items(contents.meta()?)?)?;
    Ok(())
}

fn begin(pass: &mut impl Pass, bucket: &str) -> Result<(), StoreError> {
    Ok(pass.add_bucket(bucket)?)
}

fn add(pass: &mut impl Pass, key: &[u8], value: &[u8]) -> Result<(), StoreError> {
    Ok(pass.add(key, value)?)
}

fn write_records<C: Contents>(contents: &C, pass: &mut impl Pass) -> Result<(), C::Error> {
    begin(pass, names::KEY)?;
    let mut ascending = Ascending::default();
    contents.records(&mut |record| {
        let revision = Revision {
            main: record.main,
            sub: record.sub,
        };
        if record.main < 1 {
            let fault = ItemFault::RevisionRange {
                main: record.main.cast_unsigned(),
                sub: record.sub.into(),
            };
            return Err(record::error(revision, fault).into());
        }
        ascending.next(revision)?;
        let key = RevisionKey::new(revision, record.tombstone);
        Ok(add(pass, key.as_slice(), record.kv)?)
    })
}

type Item = (Vec<u8>, Vec<u8>);

/// Writes a bucket of few items, which need not be in order.
fn write_items(pass: &mut impl Pass, bucket: &str, mut items: Vec<Item>) -> Result<(), StoreError> {
    items.sort();
    begin(pass, bucket)?;
    for (key, value) in items {
        add(pass, &key, &value)?;
    }
    Ok(())
}

fn alarm_items(alarms: Vec<AlarmMember>) -> Vec<Item> {
    let item = |alarm: AlarmMember| (alarm.encode_to_vec(), Vec::new());
    alarms.into_iter().map(item).collect()
}

fn auth_items(auth: Auth) -> Vec<Item> {
    let Auth { enabled, revision } = auth;
    let enabled = enabled.map(|enabled| vec![u8::from(enabled)]);
    present([
        (names::AUTH_ENABLED, enabled),
        (names::AUTH_REVISION, revision.map(number)),
    ])
}

fn cluster_items(cluster: Cluster) -> Result<Vec<Item>, StoreError> {
    let Cluster { version, downgrade } = cluster;
    let json = |downgrade| json(names::CLUSTER, names::DOWNGRADE, &downgrade);
    let downgrade = downgrade.map(json).transpose()?;
    Ok(present([
        (names::CLUSTER_VERSION, version.map(Vec::from)),
        (names::DOWNGRADE, downgrade),
    ]))
}

fn member_items(members: &[Member]) -> Result<Vec<Item>, StoreError> {
    let item = |member: &Member| {
        let key = format!("{:x}", member.id);
        let value = json(names::MEMBERS, &key, member)?;
        Ok((key.into_bytes(), value))
    };
    members.iter().map(item).collect()
}

fn removed_items(removed: &[u64]) -> Vec<Item> {
    let item = |id| (format!("{id:x}").into_bytes(), b"removed".to_vec());
    removed.iter().map(item).collect()
}

fn meta_items(meta: Meta) -> Result<Vec<Item>, StoreError> {
    let Meta {
        consistent_index,
        term,
        conf_state,
        storage_version,
        scheduled_compaction,
        finished_compaction,
    } = meta;
    let json = |conf_state| json(names::META, names::CONF_STATE, &conf_state);
    let conf_state = conf_state.map(json).transpose()?;
    let compaction = |main| {
        let key = RevisionKey::new(Revision { main, sub: 0 }, false);
        key.as_slice().to_vec()
    };
    Ok(present([
        (names::CONSISTENT_INDEX, consistent_index.map(number)),
        (names::TERM, term.map(number)),
        (names::CONF_STATE, conf_state),
        (names::STORAGE_VERSION, storage_version.map(Vec::from)),
        (
            names::SCHEDULED_COMPACTION,
            scheduled_compaction.map(compaction),
        ),
        (
            names::FINISHED_COMPACTION,
            finished_compaction.map(compaction),
        ),
    ]))
}

/// The items that there are.
fn present<const N: usize>(items: [(&str, Option<Vec<u8>>); N]) -> Vec<Item> {
    let item = |(key, value): (&str, Option<_>)| Some((key.as_bytes().to_vec(), value?));
    items.into_iter().filter_map(item).collect()
}

fn number(number: u64) -> Vec<u8> {
    number.to_be_bytes().to_vec()
}

fn json(bucket: &'static str, key: &str, value: &impl Serialize) -> Result<Vec<u8>, StoreError> {
    let json = to_json("value", value);
    let fault = |error: MessageError| StoreError::item(bucket, key.as_bytes(), error.into());
    json.map(as_go).map_err(fault)
}
