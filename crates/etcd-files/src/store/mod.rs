//! What the database of an etcd holds, typed: its records, leases, users and members are read from an image and written to one.
//!
//! [`Store`] reads. Every value is verified when it is read: it decodes, it is encoded as etcd encodes it, and it belongs to its
//! key. Records, leases, users and roles are streams, so memory does not grow with the file; whether the records of one key fit
//! together is a pass of its own, [`Store::verify_histories`], since it has to remember the live keys. [`Contents`] is what is
//! written by [`export_layout`] and [`export`], in two passes. [`Rewrite`] is the contents of a `Store`, so that an image can be
//! read and written again. [`status`] and [`hash_kv`] compute what `etcdutl snapshot status` and `etcdutl hashkv` print.
//! Left out: what Quorate makes of all this, and the pages of the file (`bolt`).
//!
//! # The buckets
//!
//! | bucket | key | value |
//! |---|---|---|
//! | `key` | revision: `main` u64, `_`, `sub` u64, and `t` for a deletion | `KeyValue`; of a deletion only its key |
//! | `meta` | `consistent_index`, `term` (since 3.5) | u64 |
//! | | `confState` (since 3.5) | JSON |
//! | | `scheduledCompactRev`, `finishedCompactRev` | revision |
//! | | `storageVersion` (since 3.6) | text, such as `3.6.0` |
//! | `lease` | id, u64 | `Lease` |
//! | `auth` | `authEnabled`, `authRevision` | one byte; u64 |
//! | `authUsers`, `authRoles` | name | `User`, `Role` |
//! | `alarm` | `AlarmMember` | empty |
//! | `cluster` | `clusterVersion`, `downgrade` (since 3.5) | text; JSON |
//! | `members`, `members_removed` | id in hexadecimal digits | JSON; `removed` |
//!
//! Integers are big endian. `key` and `meta` are in every database of an etcd; versions differ in which others are.
//!
//! # The mark of a bumped revision
//!
//! `etcdutl snapshot restore --bump-revision` raises the revision by one record that has an empty value and no key. It stays in
//! the file for ever. [`Record::is_bump`] tells it; it changes no key.
//!
//! # Example
//!
//! ```
//! # use quorate_etcd_files::{bolt::Image, store::*};
//! # fn example(snapshot: std::fs::File, out: std::fs::File) -> Result<(), StoreError> {
//! let image = Image::open(snapshot)?;
//! image.verify_hash()?;
//! let store = Store::open(image)?;
//! for record in store.records()? {
//!     let record = record?;
//!     println!("{} wrote {:?}", record.revision(), record.key_value.key);
//! }
//! println!("{:08x}", hash_kv(&store, 0)?.hash);
//!
//! let bump = Some(Bump { by: 1_000_000, mark_compacted: true });
//! let contents = Rewrite::new(&store, RewriteOptions { bump, ..RewriteOptions::default() })?;
//! let layout = export_layout(&contents)?;
//! println!("{} bytes", layout.bytes());
//! export(&contents, layout, out)?;
//! # Ok(())
//! # }
//! ```

mod contents;
mod error;
mod fuzz;
mod hash;
mod histories;
mod identity;
mod json;
mod meta;
mod names;
mod read;
mod record;
mod revision;
mod rewrite;
mod values;

#[doc(hidden)]
pub use fuzz::fuzz;
pub use {
    contents::{Contents, export, export_layout},
    error::{ItemFault, StoreError},
    hash::{HashKv, Status, hash_kv, status},
    meta::{Auth, Cluster, Meta, STORAGE_VERSION},
    read::{Store, Unknown},
    record::{Record, RecordRef, Records},
    revision::Revision,
    rewrite::{Bump, REVISION_MAX, Rewrite, RewriteOptions},
    values::Values,
};
