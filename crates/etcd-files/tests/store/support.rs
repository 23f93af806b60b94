//! Stores of these tests: typed ones, and the plain items that a file has.

use bytes::Bytes;
use prost::Message;
use quorate_etcd_files::{
    bolt::{Image, Measure, Source, Writer},
    messages::{
        AlarmMember, ConfState, Downgrade, KeyValue, Lease, Member, Permission, PermissionKind,
        Role, User, UserAddOptions,
    },
    store::{
        Auth, Cluster, Contents, Meta, Record, RecordRef, STORAGE_VERSION, Store, StoreError,
        export, export_layout,
    },
};
use std::collections::BTreeMap;

/// A record: main, sub, tombstone, value.
pub(crate) type Kept = (i64, u32, bool, Vec<u8>);

#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Memory {
    pub(crate) alarms: Vec<AlarmMember>,
    pub(crate) auth: Auth,
    pub(crate) roles: Vec<Role>,
    pub(crate) users: Vec<User>,
    pub(crate) cluster: Cluster,
    pub(crate) records: Vec<Kept>,
    pub(crate) leases: Vec<Lease>,
    pub(crate) members: Vec<Member>,
    pub(crate) removed: Vec<u64>,
    pub(crate) meta: Meta,
}

impl Contents for Memory {
    type Error = StoreError;

    fn alarms(&self) -> Result<Vec<AlarmMember>, StoreError> {
        Ok(self.alarms.clone())
    }

    fn auth(&self) -> Result<Auth, StoreError> {
        Ok(self.auth)
    }

    fn roles(
        &self,
        each: &mut dyn FnMut(&Role) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.roles.iter().try_for_each(each)
    }

    fn users(
        &self,
        each: &mut dyn FnMut(&User) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.users.iter().try_for_each(each)
    }

    fn cluster(&self) -> Result<Cluster, StoreError> {
        Ok(self.cluster.clone())
    }

    fn records(
        &self,
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.records
            .iter()
            .try_for_each(|(main, sub, tombstone, kv)| {
                each(RecordRef {
                    main: *main,
                    sub: *sub,
                    tombstone: *tombstone,
                    kv,
                })
            })
    }

    fn leases(
        &self,
        each: &mut dyn FnMut(&Lease) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.leases.iter().try_for_each(each)
    }

    fn members(&self) -> Result<Vec<Member>, StoreError> {
        Ok(self.members.clone())
    }

    fn removed(&self) -> Result<Vec<u64>, StoreError> {
        Ok(self.removed.clone())
    }

    fn meta(&self) -> Result<Meta, StoreError> {
        Ok(self.meta.clone())
    }
}

pub(crate) fn file(contents: &impl Contents<Error = StoreError>) -> Vec<u8> {
    let layout = export_layout(contents).unwrap();
    let file = export(contents, layout, Vec::new()).unwrap();
    assert_eq!(file.len() as u64, layout.bytes());
    file
}

pub(crate) fn put(key: &str, main: i64, create: i64, version: i64, value: &str) -> Vec<u8> {
    let key_value = KeyValue {
        key: Bytes::copy_from_slice(key.as_bytes()),
        create_revision: create,
        mod_revision: main,
        version,
        value: Bytes::copy_from_slice(value.as_bytes()),
        lease: 0,
    };
    key_value.encode_to_vec()
}

pub(crate) fn deletion(key: &str) -> Vec<u8> {
    let key = Bytes::copy_from_slice(key.as_bytes());
    KeyValue {
        key,
        ..KeyValue::default()
    }
    .encode_to_vec()
}

/// A store with something in every bucket, and a history of two keys.
pub(crate) fn sample() -> Memory {
    Memory {
        alarms: [(7, 2), (7, 1), (6, 1)]
            .map(|(member_id, alarm)| AlarmMember { member_id, alarm })
            .into(),
        auth: Auth {
            enabled: Some(true),
            revision: Some(9),
        },
        roles: vec![role("reader"), role("writer")],
        users: vec![user("alice"), user("root")],
        cluster: Cluster {
            version: Some("3.6.0".into()),
            downgrade: Some(Downgrade {
                target_version: "3.5.0".into(),
                enabled: true,
            }),
        },
        records: vec![
            (2, 0, false, put("a", 2, 2, 1, "1")),
            (3, 0, false, put("a", 3, 2, 2, "2")),
            (3, 1, false, put("b", 3, 3, 1, "1")),
            (4, 0, true, deletion("a")),
            (5, 0, false, put("a", 5, 5, 1, "3")),
        ],
        leases: [1, 5, -3].map(lease).into(),
        members: [member(7), member(0xa1)].into(),
        removed: vec![0xb2, 3],
        meta: Meta {
            consistent_index: Some(40),
            term: Some(3),
            conf_state: Some(ConfState {
                voters: vec![7, 0xa1],
                ..ConfState::default()
            }),
            storage_version: Some(STORAGE_VERSION.into()),
            scheduled_compaction: None,
            finished_compaction: None,
        },
    }
}

fn role(name: &'static str) -> Role {
    let permission = |kind, key: &'static str| Permission {
        kind,
        key: key.into(),
        range_end: "".into(),
    };
    Role {
        name: name.into(),
        permissions: vec![
            permission(PermissionKind::Read.into(), "a"),
            permission(PermissionKind::ReadWrite.into(), "b"),
        ],
    }
}

fn user(name: &'static str) -> User {
    User {
        name: name.into(),
        password: "hash".into(),
        roles: vec!["reader".into()],
        options: Some(UserAddOptions { no_password: false }),
    }
}

fn lease(id: i64) -> Lease {
    Lease {
        id,
        ttl: 100,
        remaining_ttl: 7,
    }
}

fn member(id: u64) -> Member {
    Member {
        id,
        peer_urls: vec!["http://localhost:2380/?a=1&b=<2>".into()],
        is_learner: false,
        name: "one".into(),
        client_urls: vec![],
    }
}

/// Everything that a store has; the first error ends it.
pub(crate) fn read<S: Source>(store: &Store<S>) -> Result<Memory, StoreError> {
    let kept = |record: Record| {
        let kv = record.kv.to_vec();
        (record.main, record.sub, record.tombstone, kv)
    };
    Ok(Memory {
        alarms: store.alarms()?.collect::<Result<_, _>>()?,
        auth: store.auth()?,
        roles: store.roles()?.collect::<Result<_, _>>()?,
        users: store.users()?.collect::<Result<_, _>>()?,
        cluster: store.cluster()?,
        records: store
            .records()?
            .map(|record| record.map(kept))
            .collect::<Result<_, _>>()?,
        leases: store.leases()?.collect::<Result<_, _>>()?,
        members: store.members()?.collect::<Result<_, _>>()?,
        removed: store.removed()?.collect::<Result<_, _>>()?,
        meta: store.meta()?,
    })
}

/// Items by key, by bucket.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Raw(pub(crate) BTreeMap<Vec<u8>, BTreeMap<Vec<u8>, Vec<u8>>>);

impl Raw {
    pub(crate) fn of(file: impl Source) -> Self {
        let image = Image::open(file).unwrap();
        let buckets = image.buckets().map(|bucket| {
            let bucket = bucket.unwrap();
            let items = bucket.items().map(Result::unwrap).collect();
            (bucket.name().to_vec(), items)
        });
        Self(buckets.collect())
    }

    pub(crate) fn bucket(&mut self, name: &str) -> &mut BTreeMap<Vec<u8>, Vec<u8>> {
        self.0.entry(name.into()).or_default()
    }

    pub(crate) fn file(&self) -> Vec<u8> {
        let mut measure = Measure::new();
        for (name, items) in &self.0 {
            measure.bucket(name).unwrap();
            for (key, value) in items {
                measure.item(key, value.len() as u64).unwrap();
            }
        }
        let mut writer = Writer::new(Vec::new(), measure.finish().unwrap()).unwrap();
        for (name, items) in &self.0 {
            writer.bucket(name).unwrap();
            for (key, value) in items {
                writer.item(key, &[value]).unwrap();
            }
        }
        writer.finish().unwrap()
    }
}

pub(crate) fn open(file: &[u8]) -> Store<&[u8]> {
    Store::open(Image::open(file).unwrap()).unwrap()
}
