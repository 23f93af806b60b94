//! Makes the cluster's certificate authority and its members' certificates: `quorate cert`.
//!
//! A member's certificate names the member in a URI, `quorate://member/NAME`, which is what peers check; hosts are for other
//! tools. The authority's name is derived from its key, so that authorities of two clusters are never mistaken for each other,
//! and members' certificates can be signed without parsing the authority's. Nothing existing is overwritten.

use super::{error::TlsError, pem};
use crate::clock;
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType,
};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    fs::OpenOptions,
    io::Write as _,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

/// The authority's certificate in its folder.
pub const CA_FILE: &str = "ca.pem";
/// The authority's private key in its folder.
pub const CA_KEY_FILE: &str = "ca-key.pem";
/// What a member's URI begins with.
const URI_START: &str = "quorate://member/";
/// Certificates are valid from a day before they are made: clocks differ.
const SKEW_DAYS: u64 = 1;
/// The longest validity: dates beyond the year 9999 do not exist in certificates.
const DAYS_MAX: u32 = 365 * 1_000;

/// `quorate cert`: makes certificates for the connections between members.
#[derive(Debug, Args)]
pub struct CertArgs {
    /// What to make.
    #[command(subcommand)]
    pub make: CertCommand,
}

/// What `quorate cert` makes.
#[derive(Debug, Subcommand)]
pub enum CertCommand {
    /// Makes a certificate authority: ca.pem, which every member gets, and ca-key.pem, which stays secret.
    Ca {
        /// The folder to put both into.
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
        /// How long it is valid.
        #[arg(long, default_value_t = 3_650, value_parser = clap::value_parser!(u32).range(1..))]
        days: u32,
    },
    /// Makes a member's certificate and key: NAME.pem and NAME-key.pem.
    Member {
        /// The folder with ca.pem and ca-key.pem.
        #[arg(long, value_name = "DIR", default_value = ".")]
        ca: PathBuf,
        /// The folder to put both into; the authority's if not given.
        #[arg(long, value_name = "DIR")]
        dir: Option<PathBuf>,
        /// The member's name, as in its configuration.
        #[arg(long)]
        name: String,
        /// A host name or IP address of the member; may be given several times.
        #[arg(long, value_name = "HOST", num_args = 1..)]
        host: Vec<String>,
        /// How long it is valid.
        #[arg(long, default_value_t = 3_650, value_parser = clap::value_parser!(u32).range(1..))]
        days: u32,
    },
}

impl CertArgs {
    /// Makes the files, and returns their paths.
    pub fn run(&self) -> Result<Vec<PathBuf>, TlsError> {
        match &self.make {
            CertCommand::Ca { dir, days } => make_ca(dir, *days),
            CertCommand::Member {
                ca,
                dir,
                name,
                host,
                days,
            } => make_member(ca, dir.as_deref().unwrap_or(ca), name, host, *days),
        }
    }
}

/// Makes an authority in folder `dir`: its certificate and key.
pub fn make_ca(dir: &Path, days: u32) -> Result<Vec<PathBuf>, TlsError> {
    let files = [dir.join(CA_FILE), dir.join(CA_KEY_FILE)];
    refuse_existing(&files)?;
    let key = KeyPair::generate()?;
    let mut params = ca_params(&key);
    valid_for(&mut params, days);
    let cert = params.self_signed(&key)?;
    write_new(&files[1], &key.serialize_pem())?;
    write_new(&files[0], &cert.pem())?;
    Ok(files.into())
}

/// Makes the certificate and key of member `name`, reached at `hosts`, in folder `dir`, signed by the authority in folder `ca`.
pub fn make_member(
    ca: &Path,
    dir: &Path,
    name: &str,
    hosts: &[String],
    days: u32,
) -> Result<Vec<PathBuf>, TlsError> {
    if name.is_empty() || name.contains('/') {
        return Err(TlsError::Request(
            "a member's name is not empty and has no /",
        ));
    }
    let files = [
        dir.join(format!("{name}.pem")),
        dir.join(format!("{name}-key.pem")),
    ];
    refuse_existing(&files)?;
    let ca_key_file = ca.join(CA_KEY_FILE);
    let ca_key = KeyPair::from_pem(&read(&ca_key_file)?).map_err(|error| TlsError::Pem {
        path: ca_key_file,
        problem: error.to_string(),
    })?;
    let issuer = Issuer::new(ca_params(&ca_key), ca_key);
    let key = KeyPair::generate()?;
    let mut params = member_params(name, hosts)?;
    valid_for(&mut params, days);
    let cert = params.signed_by(&key, &issuer)?;
    // An authority made by another tool may have another name. Then that tool has to make its members' certificates.
    pem::check_signed(cert.der(), &ca.join(CA_FILE))?;
    write_new(&files[1], &key.serialize_pem())?;
    write_new(&files[0], &cert.pem())?;
    Ok(files.into())
}

/// A self-signed certificate and its key, for connections without authentication.
pub(super) fn unsigned(name: &str) -> Result<(rcgen::Certificate, KeyPair), TlsError> {
    let key = KeyPair::generate()?;
    let cert = member_params(name, &[])?.self_signed(&key)?;
    Ok((cert, key))
}

/// The URI that names a member in its certificate.
pub(super) fn member_uri(name: &str) -> String {
    let mut uri = URI_START.to_owned();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            uri.push(char::from(byte));
        } else {
            assert!(
                write!(uri, "%{byte:02X}").is_ok(),
                "a string takes all that is written to it"
            );
        }
    }
    uri
}

/// Whether a URI of a certificate names members at all.
pub(super) fn is_member_uri(uri: &str) -> bool {
    uri.starts_with(URI_START)
}

fn ca_params(key: &KeyPair) -> CertificateParams {
    let digest = Sha256::digest(key.public_key_raw());
    let mark = u64::from_be_bytes(std::array::from_fn(|at| digest[at]));
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Quorate CA {mark:016x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

fn member_params(name: &str, hosts: &[String]) -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(hosts)?;
    params
        .subject_alt_names
        .push(SanType::URI(member_uri(name).try_into()?));
    params.distinguished_name = named(name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![
        ExtendedKeyUsagePurpose::ServerAuth,
        ExtendedKeyUsagePurpose::ClientAuth,
    ];
    Ok(params)
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

fn valid_for(params: &mut CertificateParams, days: u32) {
    let today = clock::unix_time().as_secs() / 86_400;
    params.not_before = date(today.saturating_sub(SKEW_DAYS));
    // Tests use zero days: a validity that has ended already.
    params.not_after = match days {
        0 => date(today.saturating_sub(SKEW_DAYS)),
        days => date(today + u64::from(days.min(DAYS_MAX))),
    };
}

/// The date `days` after 1 January 1970 (Howard Hinnant's `civil_from_days`).
fn date(days: u64) -> time::OffsetDateTime {
    let shifted = days + 719_468;
    let (era, day_of_era) = (shifted / 146_097, shifted % 146_097);
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let shifted_month = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * shifted_month + 2) / 5 + 1;
    let month = if shifted_month < 10 {
        shifted_month + 3
    } else {
        shifted_month - 9
    };
    let year = era * 400 + year_of_era + u64::from(month <= 2);
    let small = |number: u64| u8::try_from(number).unwrap_or(1);
    rcgen::date_time_ymd(
        i32::try_from(year).unwrap_or(9_999),
        small(month),
        small(day),
    )
}

fn read(path: &Path) -> Result<String, TlsError> {
    std::fs::read_to_string(path).map_err(|source| file_error("read", path, source))
}

fn refuse_existing(files: &[PathBuf]) -> Result<(), TlsError> {
    match files.iter().find(|file| file.exists()) {
        Some(file) => Err(file_error(
            "overwrite",
            file,
            std::io::ErrorKind::AlreadyExists.into(),
        )),
        None => Ok(()),
    }
}

/// Writes a new file that its owner alone may read.
fn write_new(path: &Path, text: &str) -> Result<(), TlsError> {
    let opened = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    opened
        .and_then(|mut file| {
            file.write_all(text.as_bytes())
                .and_then(|()| file.sync_all())
        })
        .map_err(|source| file_error("write", path, source))
}

fn file_error(action: &'static str, path: &Path, source: std::io::Error) -> TlsError {
    TlsError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::os::unix::fs::PermissionsExt;

    #[derive(Debug, Parser)]
    struct Program {
        #[command(flatten)]
        cert: CertArgs,
    }

    fn run(dir: &Path, arguments: &[&str]) -> Result<Vec<PathBuf>, TlsError> {
        let dir = dir.to_str().unwrap();
        let arguments = arguments
            .iter()
            .map(|argument| argument.replace("DIR", dir));
        let program = Program::parse_from(std::iter::once("quorate".to_owned()).chain(arguments));
        program.cert.run()
    }

    #[test]
    fn an_authority_and_a_member_for_their_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        let ca = run(dir.path(), &["ca", "--dir", "DIR"]).unwrap();
        let arguments = [
            "member",
            "--ca",
            "DIR",
            "--name",
            "n1",
            "--host",
            "localhost",
            "--host",
            "127.0.0.1",
        ];
        let member = run(dir.path(), &arguments).unwrap();
        for file in ca.iter().chain(&member) {
            let mode = std::fs::metadata(file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", file.display());
        }
        let names = super::super::tls::names_in_file(&member[0]).unwrap();
        assert_eq!(names, ["quorate://member/n1"]);
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        make_ca(dir.path(), 1).unwrap();
        let before = std::fs::read(dir.path().join(CA_FILE)).unwrap();
        let error = make_ca(dir.path(), 1).unwrap_err().to_string();
        assert!(error.starts_with("cannot overwrite"), "{error}");
        make_member(dir.path(), dir.path(), "n1", &[], 1).unwrap();
        assert!(
            make_member(dir.path(), dir.path(), "n1", &[], 1).is_err(),
            "n1 exists"
        );
        assert_eq!(before, std::fs::read(dir.path().join(CA_FILE)).unwrap());
    }

    #[test]
    fn an_authority_that_is_not_the_keys_is_refused() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make_ca(dir.path(), 1).unwrap();
        make_ca(other.path(), 1).unwrap();
        std::fs::copy(other.path().join(CA_FILE), dir.path().join(CA_FILE)).unwrap();
        let error = make_member(dir.path(), dir.path(), "n1", &[], 1).unwrap_err();
        assert!(matches!(error, TlsError::Authority { .. }), "{error}");
        assert!(
            !dir.path().join("n1.pem").exists(),
            "nothing is left behind"
        );
    }

    #[test]
    fn names_that_a_uri_cannot_hold_are_escaped() {
        assert_eq!(member_uri("a b/ü"), "quorate://member/a%20b%2F%C3%BC");
        assert!(
            make_member(Path::new("."), Path::new("."), "../x", &[], 1).is_err(),
            "no paths"
        );
    }

    #[test]
    fn dates() {
        for (days, year, month, day) in [
            (0, 1970, 1, 1),
            (59, 1970, 3, 1),
            (11_016, 2000, 2, 29),
            (20_513, 2026, 3, 1),
        ] {
            assert_eq!(date(days), rcgen::date_time_ymd(year, month, day), "{days}");
        }
    }
}
