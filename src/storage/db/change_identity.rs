//! Changing a database's identity: quorum recovery makes one member's database that of a new cluster.

use super::{Db, error::DbError, format::meta};
use crate::{codec, types::Identity};

impl Db {
    /// Changes the database's identity, and writes or removes `blobs`, in one transaction. Records and leases stay.
    pub fn change_identity(
        &mut self,
        identity: Identity,
        blobs: &[(&'static str, Option<Vec<u8>>)],
    ) -> Result<(), DbError> {
        self.write(|db, transaction| {
            for (name, value) in blobs {
                assert!(
                    !name.starts_with(meta::RESERVED),
                    "blob {name} has a name that is reserved for the database"
                );
                db.put_meta(transaction, name, value.as_deref())?;
            }
            db.put_meta(transaction, meta::IDENTITY, Some(&codec::encode(&identity)))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::super::{
        DbOptions,
        testing::{FILE, MemDisk, batch},
    };
    use super::*;
    use crate::types::{ClusterId, MemberId};

    #[test]
    fn after_a_change_of_identity_only_the_new_owner_opens_it() {
        let disk = MemDisk::new();
        let open = |identity| Db::open(&disk, FILE, DbOptions::default(), identity);
        let owner = |cluster| Identity {
            cluster: ClusterId(cluster),
            member: MemberId(2),
        };
        let mut db = open(owner(1)).unwrap();
        for index in 1..=5 {
            db.commit(&batch(index, 2)).unwrap();
        }
        let (applied, usage) = (db.applied(), db.usage());
        db.change_identity(owner(9), &[("a", Some(vec![7]))])
            .unwrap();
        drop(db);
        assert!(matches!(
            open(owner(1)),
            Err(DbError::ForeignIdentity { .. })
        ));
        let db = open(owner(9)).unwrap();
        assert_eq!((db.applied(), db.usage()), (applied, usage));
        db.load(|_| {}).unwrap();
        assert_eq!(db.reader().unwrap().meta("a").unwrap(), Some(vec![7]));
    }
}
