//! What an image holds: one commit of the database, as etcd stores the same.
//!
//! Records, leases and passwords are those of the commit, byte for byte. Of the compacted past only what etcd's compaction leaves
//! is in the image, whether this member has removed the rest already or not. Tokens are left out: a client logs in again.

use super::error::ImageError;
use crate::{
    actors::{
        load::{self, StoredState},
        members::{ClusterMember, Members},
    },
    codec,
    kv::{command::AlarmKind as Raised, index::Snapshot, lease::LeaseRow, record},
    storage::db::{DbReader, RecordRef as StoredRecord},
    types::{LeaseId, RecordKind, Rev, Revision},
};
use quorate_etcd_files::{
    messages::{
        AlarmKind, AlarmMember, ConfState, Lease, Member, Permission, Role, User, UserAddOptions,
    },
    store::{Auth, Cluster, Contents, Meta, RecordRef, STORAGE_VERSION},
};
use std::{collections::BTreeSet, ops::ControlFlow, thread};

/// After so many records the thread yields its core, and checks whether the image is still wanted.
const YIELD_RECORDS: usize = 64;

/// One commit, as the contents of etcd's file.
pub(super) struct ImageContents<W> {
    reader: DbReader,
    state: StoredState,
    /// Names the records of the compacted past that stay; `None` if only those are stored any more.
    staying: Option<Snapshot>,
    /// Whether anybody waits for the image.
    is_wanted: W,
}

impl<W: Fn() -> bool> ImageContents<W> {
    /// The commit that `reader` reads. `keys` is an index that holds all of the commit's records and is pruned at no later
    /// revision than `compacted`, the one at which the commit is compacted.
    pub(super) fn new(
        reader: DbReader,
        keys: Snapshot,
        compacted: Revision,
        is_wanted: W,
    ) -> Result<Self, ImageError> {
        let state = load::stored_state(&reader)?;
        if state.compacted != compacted {
            return Err(ImageError::OtherCompaction {
                found: state.compacted,
                expected: compacted,
            });
        }
        let progress = reader.compaction()?;
        let is_pruned = compacted == Revision::NEVER_COMPACTED
            || progress.is_some_and(|it| it.through == compacted && it.next.is_none());
        Ok(Self {
            reader,
            state,
            // Not kept longer than necessary: writes meanwhile copy the nodes of an index that somebody holds.
            staying: (!is_pruned).then_some(keys),
            is_wanted,
        })
    }

    /// What the commit holds besides records and leases.
    pub(super) fn state(&self) -> &StoredState {
        &self.state
    }

    fn stays(&self, stored: &StoredRecord<'_>) -> bool {
        let compacted = self.state.compacted;
        self.staying.as_ref().is_none_or(|keys| {
            stored.rev.major > compacted
                || keys.needed_at_compaction(
                    record::key_slice(stored.kv),
                    stored.rev,
                    stored.kind,
                    compacted,
                )
        })
    }

    /// Hands over the leases from `from` on whose ids satisfy `is_meant`, until one does not.
    fn leases_from(
        &self,
        from: LeaseId,
        is_meant: impl Fn(LeaseId) -> bool,
        each: &mut dyn FnMut(&Lease) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let mut failed = None;
        self.reader.scan_leases(from, |id, bytes| {
            if !is_meant(id) {
                return ControlFlow::Break(());
            }
            let row = codec::decode("lease", bytes).map_err(ImageError::from);
            match row.and_then(|row| each(&lease(id, row))) {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failed.map_or(Ok(()), Err)
    }
}

impl<W: Fn() -> bool> Contents for ImageContents<W> {
    type Error = ImageError;

    fn alarms(&self) -> Result<Vec<AlarmMember>, ImageError> {
        // Two alarms of Quorate can be the same one of etcd.
        let alarms = self.state.alarms.iter().map(|(member, kind)| {
            let alarm = match kind {
                Raised::NoSpace | Raised::QuotaReached => AlarmKind::NoSpace,
                Raised::Corrupt | Raised::StateDiffers => AlarmKind::Corrupt,
            };
            (member.0, alarm)
        });
        let alarms: BTreeSet<(u64, AlarmKind)> = alarms.collect();
        let alarm = |(member_id, alarm): (u64, AlarmKind)| AlarmMember {
            member_id,
            alarm: alarm.into(),
        };
        Ok(alarms.into_iter().map(alarm).collect())
    }

    fn auth(&self) -> Result<Auth, ImageError> {
        Ok(Auth {
            enabled: Some(self.state.auth.is_enabled()),
            revision: Some(self.state.auth.revision()),
        })
    }

    fn roles(
        &self,
        each: &mut dyn FnMut(&Role) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let auth = &self.state.auth;
        for name in auth.roles() {
            let permissions = auth.granted(name).iter().map(|granted| Permission {
                kind: granted.kind,
                key: granted.key.clone().into(),
                range_end: granted.range_end.clone().into(),
            });
            each(&Role {
                name: name.to_owned().into(),
                permissions: permissions.collect(),
            })?;
        }
        Ok(())
    }

    fn users(
        &self,
        each: &mut dyn FnMut(&User) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let auth = &self.state.auth;
        for name in auth.users() {
            let Some(user) = auth.user(name) else {
                continue;
            };
            let password = user.password();
            each(&User {
                name: name.to_owned().into(),
                password: password.unwrap_or_default().to_vec().into(),
                roles: user.roles().to_vec(),
                options: Some(UserAddOptions {
                    no_password: password.is_none(),
                }),
            })?;
        }
        Ok(())
    }

    fn cluster(&self) -> Result<Cluster, ImageError> {
        // Without a version, every etcd from 3.4 on restores it.
        Ok(Cluster::default())
    }

    fn records(
        &self,
        each: &mut dyn FnMut(RecordRef<'_>) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        let (mut failed, mut seen) = (None, 0_usize);
        let all = Rev::default()..Rev::new(Revision(i64::MAX), u32::MAX);
        self.reader.scan(all, |stored| {
            seen += 1;
            if seen.is_multiple_of(YIELD_RECORDS) {
                thread::yield_now();
                if !(self.is_wanted)() {
                    failed = Some(ImageError::Unwanted);
                    return ControlFlow::Break(());
                }
            }
            if !self.stays(&stored) {
                return ControlFlow::Continue(());
            }
            let handed = each(RecordRef {
                main: stored.rev.major.0,
                sub: stored.rev.sub,
                tombstone: stored.kind == RecordKind::Tombstone,
                kv: stored.kv,
            });
            match handed {
                Ok(()) => ControlFlow::Continue(()),
                Err(error) => {
                    failed = Some(error);
                    ControlFlow::Break(())
                }
            }
        })?;
        failed.map_or(Ok(()), Err)
    }

    /// The table is in the order of signed ids, the bucket in that of unsigned ones.
    fn leases(
        &self,
        each: &mut dyn FnMut(&Lease) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        self.leases_from(LeaseId(0), |_| true, each)?;
        self.leases_from(LeaseId(i64::MIN), |id| id.0 < 0, each)
    }

    fn members(&self) -> Result<Vec<Member>, ImageError> {
        let member = |member: &ClusterMember| Member {
            id: member.id.0,
            peer_urls: member.info.peer_urls.clone(),
            is_learner: member.learner,
            name: member.info.name.clone(),
            client_urls: member.info.client_urls.clone(),
        };
        Ok(self.state.members.iter().map(member).collect())
    }

    fn removed(&self) -> Result<Vec<u64>, ImageError> {
        // The membership does not hold them.
        Ok(Vec::new())
    }

    fn meta(&self) -> Result<Meta, ImageError> {
        let StoredState {
            applied,
            compacted,
            members,
            ..
        } = &self.state;
        let compaction = (*compacted != Revision::NEVER_COMPACTED).then_some(compacted.0);
        Ok(Meta {
            consistent_index: Some(applied.index.0),
            term: Some(applied.term.0),
            conf_state: Some(conf_state(members)),
            storage_version: Some(STORAGE_VERSION.to_owned()),
            scheduled_compaction: compaction,
            finished_compaction: compaction,
        })
    }
}

fn lease(id: LeaseId, row: LeaseRow) -> Lease {
    Lease {
        id: id.0,
        ttl: row.ttl_secs,
        // Zero means all of it, in both.
        remaining_ttl: row.remaining_secs,
    }
}

fn conf_state(members: &Members) -> ConfState {
    let (learners, voters): (Vec<_>, Vec<_>) = members.iter().partition(|member| member.learner);
    let ids = |members: Vec<&ClusterMember>| -> Vec<u64> {
        members.iter().map(|member| member.id.0).collect()
    };
    ConfState {
        voters: ids(voters),
        learners: ids(learners),
        ..ConfState::default()
    }
}
