//! `quorate import`: a restore of an etcd's database, and of the entries that its log has beyond it.
//!
//! The database is restored as a snapshot's file is. Before the result becomes the state of a cluster, the entries are applied to
//! it; `crate::import` says what each does. The directory of the etcd is only read.

use super::restore::{self, Job, RestoreError, RestoreId, RestoreRequest, Restored};
use crate::{
    config::Config,
    import::{Choices, NestedPuts, Replayed, Source, Uncommitted},
    storage::db::Db,
};
use quorate_etcd_files::{
    bolt::Image,
    store::{Store, StoreError},
};
use std::{cell::Cell, fmt, fs::File, path::PathBuf};

/// What to import, and how; the settings of the member are those of its server.
#[derive(Clone, Debug)]
pub struct ImportRequest {
    /// The etcd's data directory.
    pub directory: PathBuf,
    /// Its log, if that is elsewhere.
    pub wal: Option<PathBuf>,
    pub choices: Choices,
    /// The data count as right although the alarm CORRUPT was raised.
    pub ignore_corrupt_alarm: bool,
    /// That of the first member's import; `None` if this is the first.
    pub restore_id: Option<RestoreId>,
    /// Where the settings come from, for the commands of other members.
    pub config_file: Option<PathBuf>,
}

/// What was imported, for the operator.
#[derive(Debug)]
pub struct Imported {
    source: Source,
    replayed: Replayed,
    restored: Restored,
}

impl fmt::Display for Imported {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Replayed { requests, refused } = self.replayed;
        writeln!(f, "{}", self.source)?;
        writeln!(
            f,
            "replayed   {requests} requests of the log, and {refused} that were refused"
        )?;
        self.restored.fmt(f)
    }
}

/// Makes the data directory of `config` out of that of an etcd that does not run.
pub fn import_etcd(request: &ImportRequest, config: &Config) -> Result<Imported, RestoreError> {
    restore::require_empty(&config.data_dir)?;
    let source = Source::open(&request.directory, request.wal.as_deref(), request.choices)?;
    let (replayed, restored) = import(request, &source, config).map_err(|error| match error {
        RestoreError::Store(fault) => RestoreError::Source {
            path: source.database().to_owned(),
            source: fault,
        },
        other => other,
    })?;
    Ok(Imported {
        source,
        replayed,
        restored,
    })
}

fn import(
    request: &ImportRequest,
    source: &Source,
    config: &Config,
) -> Result<(Replayed, Restored), RestoreError> {
    let path = source.database();
    let file = File::open(path).map_err(|source| RestoreError::Open {
        path: path.to_owned(),
        source,
    })?;
    let image = Image::open(&file).map_err(StoreError::from)?;
    let state = (image.pages(), image.txid());
    image.check().map_err(StoreError::from)?;
    let store = Store::open(image)?;
    let unchanged = || {
        source.verify_unchanged()?;
        let again = Image::open(&file).map_err(StoreError::from)?;
        if (again.pages(), again.txid()) == state {
            return Ok(());
        }
        Err(RestoreError::Changed {
            path: path.to_owned(),
        })
    };
    let replayed = Cell::new(Replayed::default());
    let mut replay = |db: &mut Db| {
        replayed.set(source.replay(db)?);
        Ok::<(), RestoreError>(())
    };
    let as_restore = restore_request(request);
    let mut job = Job::new(&as_restore, config, &store, &unchanged)?;
    job.further = Some(&mut replay);
    let restored = job.make()?;
    Ok((replayed.get(), restored))
}

/// The same as a restore; the flags are those that the commands of other members need.
fn restore_request(request: &ImportRequest) -> RestoreRequest {
    let Choices {
        uncommitted,
        nested_puts,
        lease_ttl_min,
    } = request.choices;
    let mut flags = Vec::new();
    if let Some(wal) = &request.wal {
        flags.extend(["--wal-dir".to_owned(), wal.display().to_string()]);
    }
    flags.extend(uncommitted.map(|uncommitted| match uncommitted {
        Uncommitted::Keep => "--keep-uncommitted".to_owned(),
        Uncommitted::Drop => "--drop-uncommitted".to_owned(),
    }));
    flags.extend(nested_puts.map(|nested_puts| match nested_puts {
        NestedPuts::Passed => "--nested-puts-passed".to_owned(),
        NestedPuts::Refused => "--nested-puts-refused".to_owned(),
    }));
    if lease_ttl_min != Choices::default().lease_ttl_min {
        flags.extend(["--lease-ttl-min".to_owned(), lease_ttl_min.to_string()]);
    }
    RestoreRequest {
        file: request.directory.clone(),
        import: Some(flags),
        ignore_corrupt_alarm: request.ignore_corrupt_alarm,
        restore_id: request.restore_id,
        config_file: request.config_file.clone(),
        ..RestoreRequest::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_commands_of_other_members_have_the_same_flags() {
        let request = ImportRequest {
            directory: "etcd".into(),
            wal: Some("log".into()),
            choices: Choices {
                uncommitted: Some(Uncommitted::Keep),
                nested_puts: Some(NestedPuts::Refused),
                lease_ttl_min: 8,
            },
            ignore_corrupt_alarm: true,
            restore_id: Some("00000000000000a1".parse().unwrap()),
            config_file: None,
        };
        let restore = restore_request(&request);
        let flags = restore.import.expect("it is an import").join(" ");
        let expected = "--wal-dir log --keep-uncommitted --nested-puts-refused --lease-ttl-min 8";
        assert_eq!(flags, expected);
        assert!(restore.ignore_corrupt_alarm, "a flag of both commands");
        assert_eq!(restore.restore_id, request.restore_id);
        let plain = restore_request(&ImportRequest {
            wal: None,
            choices: Choices::default(),
            ..request
        });
        assert_eq!(plain.import, Some(Vec::new()));
    }
}
