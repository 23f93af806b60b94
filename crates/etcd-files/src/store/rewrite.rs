//! The contents of a store that was read, perhaps changed, to be written again.

use super::{
    contents::Contents,
    error::{StoreError, shown},
    meta::{Auth, Cluster, Meta},
    names,
    read::Store,
    record::RecordRef,
    revision,
};
use crate::{
    bolt::Source,
    messages::{
        AlarmMember, ConfState, Downgrade, Lease, Member, MessageError, Role, User, from_json,
        to_json,
    },
};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::collections::BTreeSet;

/// The latest revision that a bump may lead to: 2^32 changes are possible after it.
pub const REVISION_MAX: i64 = i64::MAX - (1 << 32);

/// What is changed while a store is written again.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct RewriteOptions {
    pub bump: Option<Bump>,
    /// Leaves out the alarms of members that the store does not have: nobody else would end them.
    pub drop_alarms_of_missing_members: bool,
}

/// Raises the revision, so that clients that knew later revisions than a snapshot has never see the revision fall.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bump {
    /// By how much. 0 changes nothing, as in etcdutl.
    pub by: u64,
    /// Schedules a compaction at the new revision, so that a watch from an earlier one ends with an error. etcdutl bumps only
    /// together with this.
    pub mark_compacted: bool,
}

/// The contents of a store.
#[derive(Debug)]
pub struct Rewrite<'a, S> {
    store: &'a Store<S>,
    drop_alarms_of_missing_members: bool,
    bumped: Option<Bumped>,
}

#[derive(Debug, Clone, Copy)]
struct Bumped {
    main: i64,
    mark_compacted: bool,
}

impl<'a, S: Source> Rewrite<'a, S> {
    /// Fails if the store has something that is not known here, since it would be lost. A bump reads all records once.
    pub fn new(store: &'a Store<S>, options: RewriteOptions) -> Result<Self, StoreError> {
        if let Some(unknown) = store.unknown()?.first() {
            return Err(StoreError::UnknownLost {
                what: unknown.shown(),
            });
        }
        refuse_unknown_json(store)?;
        let bump = options.bump.filter(|bump| bump.by > 0);
        let bumped = bump.map(|bump| Bumped::find(store, bump)).transpose()?;
        Ok(Self {
            store,
            drop_alarms_of_missing_members: options.drop_alarms_of_missing_members,
            bumped,
        })
    }

    /// The revision that the store was bumped to.
    pub fn bumped_revision(&self) -> Option<i64> {
        self.bumped.map(|bumped| bumped.main)
    }
}

/// Fails if a value that is JSON has a field that would be lost.
fn refuse_unknown_json<S: Source>(store: &Store<S>) -> Result<(), StoreError> {
    for (bucket, only) in [
        (names::CLUSTER, Some(names::DOWNGRADE)),
        (names::MEMBERS, None),
        (names::META, Some(names::CONF_STATE)),
    ] {
        for item in store.items(bucket)?.into_iter().flatten() {
            let (key, value) = item?;
            if only.is_some_and(|only| only.as_bytes() != key) {
                continue;
            }
            let lost = match bucket {
                names::CLUSTER => lost_field::<Downgrade>(&value),
                names::MEMBERS => lost_field::<Member>(&value),
                _ => lost_field::<ConfState>(&value),
            };
            let lost = lost.map_err(|fault| StoreError::item(bucket, &key, fault.into()))?;
            if let Some(field) = lost {
                let (key, field) = (shown(&key), shown(field.as_bytes()));
                return Err(StoreError::UnknownLost {
                    what: format!("bucket \"{bucket}\", key \"{key}\", field \"{field}\""),
                });
            }
        }
    }
    Ok(())
}

/// The first field that is not the same once the value has been read as a `T` and written again.
fn lost_field<T: Serialize + DeserializeOwned>(
    json: &[u8],
) -> Result<Option<String>, MessageError> {
    let known: T = from_json("value", json)?;
    let kept: Map<String, Value> = from_json("value", &to_json("value", &known)?)?;
    let fields: Map<String, Value> = from_json("value", json)?;
    // Go takes null as if the field were not there.
    let mut fields = fields.into_iter().filter(|(_, value)| !value.is_null());
    let lost = fields.find(|(name, value)| kept.get(name) != Some(value));
    Ok(lost.map(|(name, _)| name))
}

impl Bumped {
    fn find<S: Source>(store: &Store<S>, bump: Bump) -> Result<Self, StoreError> {
        // etcd: etcdutl counts from the last record. Old versions remove that record if it is a deletion and compacted; then the
        // store's revision is the compacted one, and counting from the record could lower it.
        let mut newest = store.meta()?.compacted().max(0);
        for item in store.items(names::KEY)?.into_iter().flatten() {
            let (key, _) = item?;
            let parsed = revision::parse(&key);
            let (revision, _) =
                parsed.map_err(|fault| StoreError::item(names::KEY, &key, fault))?;
            newest = newest.max(revision.main);
        }
        let main = newest.checked_add_unsigned(bump.by);
        let main = main.filter(|main| *main <= REVISION_MAX);
        let main = main.ok_or(StoreError::BumpTooLarge {
            newest,
            by: bump.by,
            max: REVISION_MAX,
        })?;
        Ok(Self {
            main,
            mark_compacted: bump.mark_compacted,
        })
    }
}

impl<S: Source> Contents for Rewrite<'_, S> {
    type Error = StoreError;

    fn alarms(&self) -> Result<Vec<AlarmMember>, StoreError> {
        let mut alarms: Vec<_> = self.store.alarms()?.collect::<Result<_, _>>()?;
        if self.drop_alarms_of_missing_members && !alarms.is_empty() {
            let members = self.store.members()?.map(|member| Ok(member?.id));
            let members = members.collect::<Result<BTreeSet<_>, StoreError>>()?;
            alarms.retain(|alarm| members.contains(&alarm.member_id));
        }
        Ok(alarms)
    }

    fn auth(&self) -> Result<Auth, StoreError> {
        self.store.auth()
    }

    fn roles(
        &self,
        each: &mut dyn FnMut(&Role) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.store.roles()?.try_for_each(|role| each(&role?))
    }

    fn users(
        &self,
        each: &mut dyn FnMut(&User) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.store.users()?.try_for_each(|user| each(&user?))
    }

    fn cluster(&self) -> Result<Cluster, StoreError> {
        self.store.cluster()
    }

    fn records(
        &self,
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        for record in self.store.records()? {
            each(record?.as_record_ref())?;
        }
        if let Some(Bumped { main, .. }) = self.bumped {
            // etcd: a key of a revision, and no value at all.
            each(RecordRef {
                main,
                sub: 0,
                tombstone: false,
                kv: &[],
            })?;
        }
        Ok(())
    }

    fn leases(
        &self,
        each: &mut dyn FnMut(&Lease) -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        self.store.leases()?.try_for_each(|lease| each(&lease?))
    }

    fn members(&self) -> Result<Vec<Member>, StoreError> {
        self.store.members()?.collect()
    }

    fn removed(&self) -> Result<Vec<u64>, StoreError> {
        self.store.removed()?.collect()
    }

    fn meta(&self) -> Result<Meta, StoreError> {
        let mut meta = self.store.meta()?;
        if let Some(bumped) = self.bumped.filter(|bumped| bumped.mark_compacted) {
            meta.scheduled_compaction = Some(bumped.main);
        }
        Ok(meta)
    }
}
