//! The certificate that a member makes for its client port, where it was given none: `client.auto_tls`.
//!
//! A crash between the two files leaves a pair that does not fit; the next start makes both anew.

use super::{
    error::TlsError,
    expiry::days_left,
    facts::Facts,
    made::{server_params, valid_for},
};
use crate::clock;
use rcgen::KeyPair;
use std::{
    fs::{self, DirBuilder, File, OpenOptions},
    io::{self, Write as _},
    os::unix::fs::{DirBuilderExt, OpenOptionsExt},
    path::{Path, PathBuf},
    time::Duration,
};

/// The certificate in its folder.
pub(crate) const CERT_FILE: &str = "cert.pem";
const KEY_FILE: &str = "key.pem";
const DAY: Duration = Duration::from_hours(24);

/// Certificate and key in folder `dir`, for `hosts`: those that are there, unless they do not fit, are not valid yet, or have
/// less than a tenth of their time left, or else new ones.
pub fn self_signed(
    dir: &Path,
    hosts: &[String],
    validity: Duration,
) -> Result<(PathBuf, PathBuf), TlsError> {
    let (cert, key) = (dir.join(CERT_FILE), dir.join(KEY_FILE));
    if is_good(&cert, &key, hosts, validity) {
        return Ok((cert, key));
    }
    let pair = KeyPair::generate()?;
    let mut params = server_params(hosts)?;
    valid_for(&mut params, validity.as_secs() / DAY.as_secs());
    let made = params.self_signed(&pair)?;
    let builder = DirBuilder::new().recursive(true).mode(0o700).create(dir);
    builder.map_err(|source| failed("make the folder", dir, source))?;
    replace(&key, &pair.serialize_pem(), 0o600)?;
    replace(&cert, &made.pem(), 0o644)?;
    let synced = File::open(dir).and_then(|dir| dir.sync_all());
    synced.map_err(|source| failed("sync the folder", dir, source))?;
    tracing::info!(
        "made a certificate for the client port, {}: it encrypts, and clients cannot check who signed it",
        cert.display()
    );
    Ok((cert, key))
}

fn is_good(cert: &Path, key: &Path, hosts: &[String], validity: Duration) -> bool {
    let tenth = i64::try_from(validity.as_secs() / DAY.as_secs() / 10).unwrap_or(i64::MAX);
    let now = clock::unix_time().as_secs();
    let fresh = days_left(cert, now).is_ok_and(|days| days >= tenth);
    let now = i64::try_from(now).unwrap_or(i64::MAX);
    if !fresh {
        return false;
    }
    let (Ok(chain), Ok(key)) = (super::certificates(cert), super::private_key(key)) else {
        return false;
    };
    let fits = rustls::ServerConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .is_ok_and(|builder| {
            builder
                .with_no_client_auth()
                .with_single_cert(chain.clone(), key)
                .is_ok()
        });
    // While the clock was ahead, it was made for days to come.
    let has_begun = Facts::of(&chain[0]).is_some_and(|facts| facts.not_before <= now);
    fits && has_begun
        && hosts
            .iter()
            .all(|host| super::is_valid_for(&chain[0], host))
}

fn replace(path: &Path, text: &str, mode: u32) -> Result<(), TlsError> {
    let new = path.with_extension("new");
    let write = || {
        if let Err(error) = fs::remove_file(&new)
            && error.kind() != io::ErrorKind::NotFound
        {
            return Err(error);
        }
        let mut options = OpenOptions::new();
        let mut file = options.write(true).create_new(true).mode(mode).open(&new)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()?;
        fs::rename(&new, path)
    };
    write().map_err(|source| failed("write", path, source))
}

fn failed(action: &'static str, path: &Path, source: io::Error) -> TlsError {
    TlsError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn it_is_kept_while_it_is_good_and_made_anew_otherwise() {
        let home = tempfile::tempdir().unwrap();
        let dir = home.path().join("client-tls");
        let hosts = ["localhost".to_owned(), "127.0.0.1".to_owned()];
        let make = |hosts: &[String], days: u32| {
            let (cert, key) = self_signed(&dir, hosts, days * DAY).unwrap();
            let mode = fs::metadata(&key).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
            fs::read_to_string(cert).unwrap()
        };
        let first = make(&hosts, 365);
        assert_eq!(make(&hosts, 365), first);
        assert_ne!(make(&["n1".to_owned()], 365), first, "other hosts");
        let short = make(&hosts, 20);
        assert_ne!(make(&hosts, 365), short, "less than a tenth is left");
        let good = make(&hosts, 365);
        fs::write(
            dir.join(KEY_FILE),
            KeyPair::generate().unwrap().serialize_pem(),
        )
        .unwrap();
        assert_ne!(
            make(&hosts, 365),
            good,
            "another key: a crash came between the two"
        );
        // As one that was made while the clock was ahead.
        let pair = KeyPair::generate().unwrap();
        let mut params = server_params(&hosts).unwrap();
        params.not_before = rcgen::date_time_ymd(2099, 1, 1);
        params.not_after = rcgen::date_time_ymd(2100, 1, 1);
        let early = params.self_signed(&pair).unwrap().pem();
        fs::write(dir.join(KEY_FILE), pair.serialize_pem()).unwrap();
        fs::write(dir.join(CERT_FILE), &early).unwrap();
        assert_ne!(make(&hosts, 365), early, "it is not valid yet");
    }
}
