//! Makes a certificate authority, and the certificates of members, of client ports and of clients: `quorate cert`.
//!
//! A member's certificate names the member in a URI, `quorate://member/NAME`, which is what peers check; hosts are for other
//! tools. The authority's name is derived from its key, so that authorities of two clusters are never mistaken for each other,
//! and certificates can be signed without parsing the authority's. Existing files are overwritten only if that is asked for; then
//! each file is replaced as a whole, the key first.

use super::{
    cert_files::{check_replaced, make_folder, read, refuse_existing, replace, write_new},
    cert_names::{check_file_name, check_hosts, check_name},
};
use crate::{
    clock,
    tls::{
        self, CertificateKind, MEMBER_URI_START, Revoked, TlsError, certificates, check_signed,
        midnight, serial_number, valid_for,
    },
};
use clap::{Args, Subcommand};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, DistinguishedName,
    DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyIdMethod, KeyPair, KeyUsagePurpose,
    RevokedCertParams, SanType, SerialNumber,
};
use sha2::{Digest, Sha256};
use std::{
    fmt::Write as _,
    path::{Path, PathBuf},
};

/// The authority's certificate in its folder.
pub const CA_FILE: &str = "ca.pem";
/// The authority's private key in its folder.
pub const CA_KEY_FILE: &str = "ca-key.pem";
/// The list of revoked certificates in its folder.
const CRL_FILE: &str = "crl.pem";
/// When a list says that the next one comes. It is in force after that, too.
const CRL_DAYS: u32 = 365;
/// The longest validity: dates beyond the year 9999 do not exist in certificates.
const DAYS_MAX: u32 = 365 * 1_000;

/// `quorate cert`: makes certificates.
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
        /// The folder to put both into; made if there is none.
        #[arg(long, value_name = "DIR", default_value = ".")]
        dir: PathBuf,
        /// How long it is valid.
        #[arg(long, default_value_t = 3_650, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
        days: u32,
    },
    /// Makes a member's certificate and key for connections to other members: NAME.pem and NAME-key.pem.
    Member {
        #[command(flatten)]
        place: Place,
        /// The member's name, as in its configuration.
        #[arg(long)]
        name: String,
        /// A host name or IP address of the member; may be given several times.
        #[arg(long, value_name = "HOST", num_args = 1..)]
        host: Vec<String>,
    },
    /// Makes a certificate and key for the port of clients: NAME.pem and NAME-key.pem.
    Server {
        #[command(flatten)]
        place: Place,
        /// What the files are called.
        #[arg(long, default_value = "server")]
        name: String,
        /// A host name or IP address at which clients reach it; may be given several times.
        #[arg(long, value_name = "HOST", num_args = 1.., required = true)]
        host: Vec<String>,
    },
    /// Makes a client's certificate and key: NAME.pem and NAME-key.pem. NAME is the user who shows it.
    Client {
        #[command(flatten)]
        place: Place,
        /// The user's name.
        #[arg(long)]
        name: String,
    },
    /// Makes the list of revoked certificates, crl.pem, or adds to the one that is there.
    Crl {
        /// The folder with ca.pem and ca-key.pem, into which the list is put.
        #[arg(long, value_name = "DIR", default_value = ".")]
        ca: PathBuf,
        /// A certificate to revoke; may be given several times.
        #[arg(long, value_name = "FILE", num_args = 1..)]
        revoke: Vec<PathBuf>,
    },
}

/// Who signs a certificate, where it is put, and how long it is valid.
#[derive(Debug, Args)]
pub struct Place {
    /// The folder with ca.pem and ca-key.pem.
    #[arg(long, value_name = "DIR", default_value = ".")]
    ca: PathBuf,
    /// The folder to put both into, made if there is none; the authority's if not given.
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,
    /// How long it is valid.
    #[arg(long, default_value_t = 3_650, value_parser = clap::value_parser!(u32).range(1..=i64::from(DAYS_MAX)))]
    days: u32,
    /// Replace the files that are there.
    #[arg(long)]
    replace: bool,
}

impl CertArgs {
    /// Makes the files.
    pub fn run(&self) -> Result<Made, TlsError> {
        match &self.make {
            CertCommand::Ca { dir, days } => make_ca(dir, *days).map(Made::files),
            CertCommand::Member { place, name, host } => {
                place.make(CertificateKind::Member, name, || {
                    check_hosts(host)?;
                    member_params(name, host)
                })
            }
            CertCommand::Server { place, name, host } => {
                place.make(CertificateKind::Server, name, || {
                    check_hosts(host)?;
                    server_params(host)
                })
            }
            CertCommand::Client { place, name } => {
                place.make(CertificateKind::Client, name, || Ok(client_params(name)))
            }
            CertCommand::Crl { ca, revoke } => make_crl(ca, revoke).map(Made::files),
        }
    }
}

#[derive(Debug)]
pub struct Made {
    /// The files, as paths.
    pub files: Vec<PathBuf>,
    /// What is otherwise than it was asked for.
    pub note: Option<String>,
}

impl Made {
    fn files(files: Vec<PathBuf>) -> Self {
        Self { files, note: None }
    }
}

impl Place {
    /// Makes a certificate and its key, in files of this name.
    fn make(
        &self,
        kind: CertificateKind,
        name: &str,
        params: impl FnOnce() -> Result<CertificateParams, TlsError>,
    ) -> Result<Made, TlsError> {
        check_name(name)?;
        check_file_name(name, &[CA_FILE, CA_KEY_FILE, CRL_FILE])?;
        let mut params = params()?;
        let dir = self.dir.as_ref().unwrap_or(&self.ca);
        let files = [
            dir.join(format!("{name}.pem")),
            dir.join(format!("{name}-key.pem")),
        ];
        if self.replace {
            check_replaced(&files[0], kind)?;
        } else {
            refuse_existing(&files)?;
        }
        let issuer = issuer(&self.ca)?;
        let key = KeyPair::generate()?;
        valid_for(&mut params, self.days.min(DAYS_MAX).into());
        let note = self.end_with_authority(&mut params, &issuer, &files[0])?;
        let cert = params.signed_by(&key, &issuer)?;
        // An authority made by another tool may have another name. Then that tool has to make its members' certificates.
        check_signed(cert.der(), &self.ca.join(CA_FILE))?;
        make_folder(dir)?;
        let write = if self.replace { replace } else { write_new };
        write(&files[1], &key.serialize_pem())?;
        write(&files[0], &cert.pem())?;
        let files = files.into();
        Ok(Made { files, note })
    }

    /// No certificate outlives the authority that signed it: it would be refused afterwards. Reports a shortened validity.
    fn end_with_authority(
        &self,
        params: &mut CertificateParams,
        issuer: &Issuer<'static, KeyPair>,
        file: &Path,
    ) -> Result<Option<String>, TlsError> {
        let ca = self.ca.join(CA_FILE);
        let ends = tls::end_of_key(&certificates(&ca)?, issuer.key().public_key_raw());
        let Some(end) = ends.filter(|end| *end < params.not_after.unix_timestamp()) else {
            return Ok(None);
        };
        let date = tls::day(end);
        let now = i64::try_from(clock::unix_time().as_secs()).unwrap_or(i64::MAX);
        if end < now {
            return Err(TlsError::Authority {
                path: ca,
                problem: format!(
                    "it ended on {date}, so nobody would take a certificate that it signs: make a new one (`quorate cert ca \
                     --dir DIR`)"
                ),
            });
        }
        params.not_after =
            time::OffsetDateTime::from_unix_timestamp(end).unwrap_or(params.not_after);
        let file = file.display();
        Ok(Some(format!(
            "{file} ends on {date}, as its authority does, not after {} days",
            self.days
        )))
    }
}

/// Makes an authority in folder `dir`: its certificate and key.
pub fn make_ca(dir: &Path, days: u32) -> Result<Vec<PathBuf>, TlsError> {
    let files = [dir.join(CA_FILE), dir.join(CA_KEY_FILE)];
    if let Some(path) = files.iter().find(|file| file.exists()) {
        return Err(TlsError::Authority {
            path: path.clone(),
            problem: format!(
                "there is an authority already, and it stays: give another --dir for a new one. To sign certificates with the \
                 one that is there: `quorate cert member --ca {dir}`, or `server` or `client`",
                dir = dir.display()
            ),
        });
    }
    make_folder(dir)?;
    let key = KeyPair::generate()?;
    let mut params = ca_params(&key);
    valid_for(&mut params, days.into());
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
    let place = Place {
        ca: ca.to_owned(),
        dir: Some(dir.to_owned()),
        days,
        replace: false,
    };
    let made = place.make(CertificateKind::Member, name, || {
        check_hosts(hosts)?;
        member_params(name, hosts)
    });
    made.map(|made| made.files)
}

/// Makes a list of revoked certificates, in the folder of the authority that signed them. What is on the list that is there stays
/// revoked.
pub(super) fn make_crl(ca: &Path, revoked: &[PathBuf]) -> Result<Vec<PathBuf>, TlsError> {
    let issuer = issuer(ca)?;
    let now = clock::unix_time();
    let today = midnight(tls::today());
    let list_path = ca.join(CRL_FILE);
    let there = list_path.exists().then_some(list_path.as_path());
    let earlier = Revoked::load(there, &certificates(&ca.join(CA_FILE))?)?;
    let entry = |serial: &[u8]| RevokedCertParams {
        serial_number: SerialNumber::from_slice(serial),
        revocation_time: today,
        reason_code: None,
        invalidity_date: None,
    };
    let mut entries: Vec<_> = earlier.serials().map(entry).collect();
    for path in revoked {
        for cert in certificates(path)? {
            let signed = check_signed(&cert, &ca.join(CA_FILE));
            signed.map_err(|_| TlsError::Pem {
                path: path.clone(),
                problem: format!("the authority in {} did not sign it", ca.display()),
            })?;
            let serial = serial_number(&cert).ok_or_else(|| TlsError::Pem {
                path: path.clone(),
                problem: "its number cannot be read".to_owned(),
            })?;
            if !earlier.serials().any(|known| known == serial) {
                entries.push(entry(serial));
            }
        }
    }
    let list = CertificateRevocationListParams {
        this_update: today,
        next_update: midnight(tls::today() + u64::from(CRL_DAYS)),
        // Each list has a higher number than those before it.
        crl_number: SerialNumber::from(now.as_secs()),
        issuing_distribution_point: None,
        revoked_certs: entries,
        key_identifier_method: KeyIdMethod::Sha256,
    };
    replace(&list_path, &list.signed_by(&issuer)?.pem()?)?;
    Ok(vec![list_path])
}

/// Makes what a command line asks for.
#[cfg(test)]
pub(super) fn test_run(line: &[&str]) {
    let command = CertArgs::augment_args(clap::Command::new("cert"));
    let matches = command.get_matches_from(std::iter::once(&"cert").chain(line));
    let args = <CertArgs as clap::FromArgMatches>::from_arg_matches(&matches)
        .expect("it is a command line");
    args.run().expect("it can be made");
}

/// A certificate as another tool makes it, which names no member.
#[cfg(test)]
pub(super) fn make_foreign(ca: &Path, file: &str, common_name: &str, hosts: &[&str]) {
    let place = Place {
        ca: ca.to_owned(),
        dir: None,
        days: 1,
        replace: false,
    };
    let hosts: Vec<String> = hosts.iter().map(|host| (*host).to_owned()).collect();
    let made = place.make(CertificateKind::Server, file, || {
        let mut params = server_params(&hosts)?;
        params.distinguished_name = named(common_name);
        params
            .extended_key_usages
            .push(ExtendedKeyUsagePurpose::ClientAuth);
        Ok(params)
    });
    made.expect("the authority is there");
}

/// The authority in a folder.
pub(super) fn issuer(ca: &Path) -> Result<Issuer<'static, KeyPair>, TlsError> {
    let file = ca.join(CA_KEY_FILE);
    for path in [&file, &ca.join(CA_FILE)] {
        if matches!(path.try_exists(), Ok(false)) {
            return Err(TlsError::Authority {
                path: path.clone(),
                problem: "there is no such file: --ca is the authority's folder, with ca.pem and ca-key.pem, which `quorate cert \
                          ca --dir DIR` makes"
                    .to_owned(),
            });
        }
    }
    let key = KeyPair::from_pem(&read(&file)?).map_err(|_| TlsError::Pem {
        path: file,
        problem:
            "it holds no private key that can sign: it must be the one that `quorate cert ca` made"
                .to_owned(),
    })?;
    Ok(Issuer::new(ca_params(&key), key))
}

/// A self-signed certificate and its key, for connections without authentication.
pub(super) fn unsigned(name: &str) -> Result<(rcgen::Certificate, KeyPair), TlsError> {
    let key = KeyPair::generate()?;
    let cert = member_params(name, &[])?.self_signed(&key)?;
    Ok((cert, key))
}

/// The URI that names a member in its certificate.
pub(super) fn member_uri(name: &str) -> String {
    let mut uri = MEMBER_URI_START.to_owned();
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

fn ca_params(key: &KeyPair) -> CertificateParams {
    let digest = Sha256::digest(key.public_key_raw());
    let mark = u64::from_be_bytes(std::array::from_fn(|at| digest[at]));
    let mut params = CertificateParams::default();
    params.distinguished_name = named(&format!("Quorate CA {mark:016x}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
}

pub(super) fn member_params(name: &str, hosts: &[String]) -> Result<CertificateParams, TlsError> {
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

fn server_params(hosts: &[String]) -> Result<CertificateParams, TlsError> {
    let mut params = tls::server_params(hosts)?;
    params.use_authority_key_identifier_extension = true;
    Ok(params)
}

fn client_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = named(name);
    params.use_authority_key_identifier_extension = true;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn named(common_name: &str) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    name
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser;
    use std::{fs, os::unix::fs::PermissionsExt};

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
        program.cert.run().map(|made| made.files)
    }

    #[test]
    fn a_certificate_of_another_kind_is_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        make_ca(dir.path(), 1).unwrap();
        make_foreign(dir.path(), "foreign", "x", &["n1"]);
        let lines: [&[&str]; 3] = [
            &["member", "--ca", "DIR", "--name", "a-member"],
            &[
                "server", "--ca", "DIR", "--host", "n1", "--name", "a-server",
            ],
            &["client", "--ca", "DIR", "--name", "a-client"],
        ];
        for line in lines {
            run(dir.path(), line).unwrap();
        }
        fs::write(dir.path().join("text.pem"), "text").unwrap();
        for line in lines {
            let own = *line.last().unwrap();
            for name in ["a-member", "a-server", "a-client", "foreign", "text"] {
                let file = dir.path().join(format!("{name}.pem"));
                let before = fs::read(&file).unwrap();
                let line: Vec<_> = line
                    .iter()
                    .map(|word| if *word == own { name } else { word })
                    .collect();
                let replaced = run(dir.path(), &[&line[..], &["--replace"]].concat());
                let changed = fs::read(&file).unwrap() != before;
                assert_eq!(changed, name == own, "{line:?}");
                if let Err(error) = replaced {
                    let error = error.to_string();
                    let expected = if name == "text" {
                        "there is no certificate in it"
                    } else {
                        "and not replaced by a"
                    };
                    assert!(error.contains(expected), "{error}");
                }
            }
        }
    }

    #[test]
    fn no_certificate_outlives_its_authority() {
        let dir = tempfile::tempdir().unwrap();
        let ca = make_ca(dir.path(), 30).unwrap();
        let place = |days| Place {
            ca: dir.path().to_owned(),
            dir: None,
            days,
            replace: true,
        };
        let sign = |days| place(days).make(CertificateKind::Client, "c", || Ok(client_params("c")));
        let left = |file: &Path| tls::days_left(file, clock::unix_time().as_secs()).unwrap();
        let made = sign(10).unwrap();
        assert_eq!(made.note, None);
        assert_eq!(left(&made.files[0]), 9, "ten midnights from now");
        let made = sign(31).unwrap();
        assert_eq!(left(&made.files[0]), left(&ca[0]));
        let note = made.note.expect("it is shorter than asked for");
        assert!(
            note.contains("as its authority does, not after 31 days"),
            "{note}"
        );
        assert_eq!(sign(30).unwrap().note, None, "as long as the authority");

        let old = tempfile::tempdir().unwrap();
        make_ca(old.path(), 0).unwrap();
        let error = make_member(old.path(), old.path(), "n1", &[], 1)
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("it ended on ") && error.contains("make a new one"),
            "{error}"
        );
        assert!(!old.path().join("n1.pem").exists());
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
            let mode = fs::metadata(file).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{}", file.display());
        }
        let names = super::super::tls::shown_names(&certificates(&member[0]).unwrap());
        assert_eq!(names, ["quorate://member/n1"]);
    }

    #[test]
    fn folders_are_made() {
        let dir = tempfile::tempdir().unwrap();
        run(dir.path(), &["ca", "--dir", "DIR/new/certs"]).unwrap();
        let member = [
            "member",
            "--ca",
            "DIR/new/certs",
            "--dir",
            "DIR/n1",
            "--name",
            "n1",
        ];
        run(dir.path(), &member).unwrap();
        assert!(dir.path().join("n1/n1.pem").exists());
        let mode = fs::metadata(dir.path().join("n1")).unwrap().permissions();
        assert_eq!(mode.mode() & 0o777, 0o700, "keys are in it");
        let file = dir.path().join("n1/n1.pem");
        let error = make_ca(&file, 1).unwrap_err().to_string();
        assert!(error.starts_with("cannot make the folder"), "{error}");
    }

    #[test]
    fn hosts_and_names_that_are_none_are_refused_before_anything_is_written() {
        let dir = tempfile::tempdir().unwrap();
        make_ca(dir.path(), 1).unwrap();
        let make = |name: &str, host: &str| {
            make_member(dir.path(), dir.path(), name, &[host.to_owned()], 1)
        };
        let long = "a".repeat(254);
        for host in [
            "",
            "not a host!",
            "10.0.0.1:2380",
            "[::1]",
            "https://n1",
            "10.0.0.300",
            "a..b",
            "-a.b",
            "a.*.b",
            "*",
            "fe80::1%eth0",
            "n1,n2",
            long.as_str(),
        ] {
            let error = make("n1", host).unwrap_err().to_string();
            let start = format!("--host {host:?}: must be a host name or an IP address");
            assert!(error.starts_with(&start), "{error}");
        }
        for name in ["", "../x", "a=b", "a,b", " a", ".", "a\nb", long.as_str()] {
            let error = make(name, "n1").unwrap_err().to_string();
            let start = format!("--name {name:?}: must be a name");
            assert!(error.starts_with(&start), "{error}");
        }
        let left = fs::read_dir(dir.path()).unwrap().count();
        assert_eq!(left, 2, "only the authority's files are there");
        let good = [
            "n1",
            "n-1.example_x.com",
            "*.example.com",
            "10.0.0.1",
            "fe80::1",
            "localhost",
        ];
        for (n, host) in good.iter().enumerate() {
            make(&format!("n{n}"), host).unwrap();
        }
    }

    #[test]
    fn each_kind_is_good_for_what_it_is_for() {
        let dir = tempfile::tempdir().unwrap();
        make_ca(dir.path(), 1).unwrap();
        let make = |arguments: &[&str]| run(dir.path(), arguments).unwrap();
        let server = make(&["server", "--ca", "DIR", "--host", "n1", "10.0.0.1"]);
        assert_eq!(server[0], dir.path().join("server.pem"));
        let client = make(&["client", "--ca", "DIR", "--name", "root"]);
        let cert = |files: &[PathBuf]| certificates(&files[0]).unwrap().remove(0);
        assert!(tls::is_valid_for(&cert(&server), "10.0.0.1"));
        assert_eq!(tls::common_name(&cert(&server)), None, "it is no user's");
        assert_eq!(tls::common_name(&cert(&client)).as_deref(), Some("root"));
        let arguments = ["server", "--ca", "DIR", "--host", "not a host!"];
        let error = run(dir.path(), &arguments).unwrap_err().to_string();
        assert!(
            error.starts_with("--host \"not a host!\": must be a host name"),
            "{error}"
        );

        let before = fs::read(&client[0]).unwrap();
        let again = ["client", "--ca", "DIR", "--name", "root"];
        let error = run(dir.path(), &again).unwrap_err().to_string();
        assert!(error.starts_with("cannot overwrite"), "{error}");
        assert_eq!(fs::read(&client[0]).unwrap(), before);
        make(&["client", "--ca", "DIR", "--name", "root", "--replace"]);
        assert_ne!(fs::read(&client[0]).unwrap(), before);
        let mode = fs::metadata(&client[1]).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);

        let old = dir.path().join("old.pem");
        fs::write(&old, before).unwrap();
        let list = make(&["crl", "--ca", "DIR", "--revoke", "DIR/old.pem"]);
        let authority = certificates(&dir.path().join(CA_FILE)).unwrap();
        let revoked = Revoked::load(Some(&list[0]), &authority).unwrap();
        let old = certificates(&old).unwrap();
        assert!(revoked.check(&old[0], &[]).is_err());
        revoked
            .check(&cert(&client), &[])
            .expect("the new one is good");

        // A later run adds to the list.
        let list = make(&["crl", "--ca", "DIR", "--revoke", "DIR/root.pem"]);
        let list = make(&["crl", "--ca", "DIR"])
            .pop()
            .or(list.first().cloned());
        let revoked = Revoked::load(list.as_deref(), &authority).unwrap();
        assert!(revoked.check(&old[0], &[]).is_err(), "still");
        assert!(revoked.check(&cert(&client), &[]).is_err());
        assert_eq!(revoked.serials().count(), 2);
    }

    #[test]
    fn nothing_is_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        make_ca(dir.path(), 1).unwrap();
        let before = fs::read(dir.path().join(CA_FILE)).unwrap();
        let error = make_ca(dir.path(), 1).unwrap_err().to_string();
        let remedy = format!("`quorate cert member --ca {}`", dir.path().display());
        for text in ["there is an authority already", "another --dir", &remedy] {
            assert!(error.contains(text), "{error}");
        }
        make_member(dir.path(), dir.path(), "n1", &[], 1).unwrap();
        assert!(
            make_member(dir.path(), dir.path(), "n1", &[], 1).is_err(),
            "n1 exists"
        );
        assert_eq!(before, fs::read(dir.path().join(CA_FILE)).unwrap());
    }

    #[test]
    fn a_folder_without_an_authority_is_refused_with_what_it_must_hold() {
        let dir = tempfile::tempdir().unwrap();
        make_ca(&dir.path().join("own"), 1).unwrap();
        for (gone, line) in [
            (CA_KEY_FILE, vec!["client", "--name", "root"]),
            (CA_KEY_FILE, vec!["crl"]),
            (CA_FILE, vec!["member", "--name", "n1"]),
        ] {
            fs::rename(dir.path().join("own").join(gone), dir.path().join(gone)).unwrap();
            let line = [&line[..], &["--ca", "DIR/own"]].concat();
            let error = run(dir.path(), &line).unwrap_err().to_string();
            for text in [&format!("own/{gone}: "), "--ca is the authority's folder"] {
                assert!(error.contains(text), "{error}");
            }
            fs::rename(dir.path().join(gone), dir.path().join("own").join(gone)).unwrap();
        }
    }

    #[test]
    fn an_authority_that_is_not_the_keys_is_refused() {
        let (dir, other) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        make_ca(dir.path(), 1).unwrap();
        make_ca(other.path(), 1).unwrap();
        fs::copy(other.path().join(CA_FILE), dir.path().join(CA_FILE)).unwrap();
        let error = make_member(dir.path(), dir.path(), "n1", &[], 1).unwrap_err();
        assert!(matches!(error, TlsError::Authority { .. }), "{error}");
        assert!(
            !dir.path().join("n1.pem").exists(),
            "nothing is left behind"
        );
    }

    #[test]
    fn no_certificate_takes_the_place_of_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        make_ca(dir.path(), 30).unwrap();
        let authority = || {
            let files = [CA_FILE, CA_KEY_FILE].map(|file| fs::read(dir.path().join(file)));
            files.map(Result::unwrap)
        };
        let before = authority();
        for name in ["ca", "ca-key", "crl", "n1-key"] {
            let place = Place {
                ca: dir.path().to_owned(),
                dir: None,
                days: 1,
                replace: true,
            };
            let refused = place.make(CertificateKind::Client, name, || Ok(client_params(name)));
            assert!(matches!(refused, Err(TlsError::Request { .. })), "{name}");
        }
        assert!(authority() == before);
    }

    #[test]
    fn names_that_a_uri_cannot_hold_are_escaped() {
        assert_eq!(member_uri("a b/ü"), "quorate://member/a%20b%2F%C3%BC");
        assert!(
            make_member(Path::new("."), Path::new("."), "../x", &[], 1).is_err(),
            "no paths"
        );
    }
}
