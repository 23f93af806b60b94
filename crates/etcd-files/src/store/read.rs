//! A store that is read: which buckets it has, and what in it is not known.

use super::{
    error::{StoreError, shown},
    names,
    record::Records,
};
use crate::bolt::{Image, Items, Source};

/// How many unknown buckets and keys are remembered.
const UNKNOWN_MAX: usize = 64;

/// The database of an etcd, or a snapshot. It is never changed.
#[derive(Debug)]
pub struct Store<S> {
    image: Image<S>,
    unknown_buckets: Vec<Vec<u8>>,
}

/// Something that no etcd up to 3.7 has. It is not read; whether that matters, the caller decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unknown {
    Bucket {
        name: Vec<u8>,
    },
    /// A key of `meta`, `auth` or `cluster`.
    Key {
        bucket: &'static str,
        key: Vec<u8>,
    },
}

impl<S: Source> Store<S> {
    /// Opens a database of which the names of the buckets are read. Their pages and values are verified when they are read; the
    /// hash of a snapshot is left to [`Image::verify_hash`].
    pub fn open(image: Image<S>) -> Result<Self, StoreError> {
        let mut missing = vec![names::KEY, names::META];
        let mut unknown_buckets = Vec::new();
        for bucket in image.buckets() {
            let bucket = bucket?;
            let name = bucket.name();
            missing.retain(|missing| missing.as_bytes() != name);
            if !names::BUCKETS.iter().any(|known| known.as_bytes() == name) {
                remember(&mut unknown_buckets, name.to_vec())?;
            }
        }
        if let Some(bucket) = missing.first() {
            return Err(StoreError::BucketMissing { bucket });
        }
        Ok(Self {
            image,
            unknown_buckets,
        })
    }

    pub fn image(&self) -> &Image<S> {
        &self.image
    }

    /// Buckets, and keys of the buckets with a fixed set of keys, that are not known here: those of a later etcd, or of a test.
    pub fn unknown(&self) -> Result<Vec<Unknown>, StoreError> {
        let buckets = self.unknown_buckets.iter().cloned();
        let mut unknown: Vec<_> = buckets.map(|name| Unknown::Bucket { name }).collect();
        for (bucket, known) in names::FIXED {
            for item in self.items(bucket)?.into_iter().flatten() {
                let (key, _) = item?;
                if !known.iter().any(|known| known.as_bytes() == key) {
                    remember(&mut unknown, Unknown::Key { bucket, key })?;
                }
            }
        }
        Ok(unknown)
    }

    /// All records in the order of their revisions, the marks of bumped revisions among them.
    pub fn records(&self) -> Result<Records<'_, S>, StoreError> {
        Ok(Records::new(self.items(names::KEY)?))
    }

    /// The items of a bucket; `None` if there is no such bucket.
    pub(super) fn items(&self, bucket: &str) -> Result<Option<Items<'_, S>>, StoreError> {
        let bucket = self.image.bucket(bucket.as_bytes())?;
        Ok(bucket.map(|bucket| bucket.items()))
    }
}

impl Unknown {
    pub(super) fn shown(&self) -> String {
        match self {
            Self::Bucket { name } => format!("bucket \"{}\"", shown(name)),
            Self::Key { bucket, key } => format!("bucket \"{bucket}\", key \"{}\"", shown(key)),
        }
    }
}

fn remember<T>(unknown: &mut Vec<T>, next: T) -> Result<(), StoreError> {
    if unknown.len() == UNKNOWN_MAX {
        return Err(StoreError::TooManyUnknown { max: UNKNOWN_MAX });
    }
    unknown.push(next);
    Ok(())
}
