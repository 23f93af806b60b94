//! `quorate snapshot status`.

use super::error::SnapshotError;
use clap::Args;
use quorate_etcd_files::{
    bolt::Image,
    store::{self, Status, StoreError},
};
use serde_json::Value;
use std::{fs::File, path::PathBuf};

#[derive(Debug, Args)]
pub(super) struct StatusArgs {
    /// The file, which is only read
    file: PathBuf,
    /// Print JSON, with the names that etcdutl uses
    #[arg(long)]
    json: bool,
}

impl StatusArgs {
    pub(super) fn run(&self) -> Result<String, SnapshotError> {
        let file = File::open(&self.file).map_err(SnapshotError::file("open", &self.file))?;
        let status = verified(file).map_err(|source| SnapshotError::Unusable {
            path: self.file.clone(),
            source: Box::new(source),
        })?;
        Ok(if self.json {
            json(&status)
        } else {
            text(&status)
        })
    }
}

fn verified(file: File) -> Result<Status, StoreError> {
    let image = Image::open(file)?;
    image.verify_hash()?;
    store::status(&image)
}

fn json(status: &Status) -> String {
    let Status {
        hash,
        revision,
        total_keys,
        total_bytes,
        version,
    } = status;
    let fields = [
        ("hash", Value::from(*hash)),
        ("revision", Value::from(*revision)),
        ("totalKey", Value::from(*total_keys)),
        ("totalSize", Value::from(*total_bytes)),
        ("version", Value::from(version.as_str())),
    ];
    let fields = fields.map(|(name, value)| (name.to_owned(), value));
    Value::Object(fields.into_iter().collect()).to_string()
}

fn text(status: &Status) -> String {
    let Status {
        hash,
        revision,
        total_keys,
        total_bytes,
        version,
    } = status;
    let version = match version.as_str() {
        "" => "before 3.6",
        version => version,
    };
    format!(
        "hash        {hash:08x}\n\
         revision    {revision}\n\
         total keys  {total_keys}\n\
         total size  {total_bytes} bytes\n\
         version     {version}"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status() -> Status {
        Status {
            hash: 0xabc,
            revision: 7,
            total_keys: 3,
            total_bytes: 20_480,
            version: "3.6.0".to_owned(),
        }
    }

    #[test]
    fn a_status_is_lines_for_people() {
        let lines = [
            "hash        00000abc",
            "revision    7",
            "total keys  3",
            "total size  20480 bytes",
            "version     3.6.0",
        ];
        assert_eq!(text(&status()), lines.join("\n"));
        let old = Status {
            version: String::new(),
            ..status()
        };
        assert!(
            text(&old).ends_with("version     before 3.6"),
            "it has none"
        );
    }

    #[test]
    fn a_status_in_json_has_the_names_of_etcdutl() {
        let value: Value = serde_json::from_str(&json(&status())).unwrap();
        let expected = serde_json::json!({
            "hash": 2_748, "revision": 7, "totalKey": 3, "totalSize": 20_480, "version": "3.6.0"
        });
        assert_eq!(value, expected);
    }
}
