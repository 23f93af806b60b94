//! The names that certificates can be made for: members, hosts, and the files that they are put into.

use crate::tls::TlsError;
use std::net::IpAddr;

/// The longest name of a member.
const NAME_BYTES_MAX: usize = 128;
/// The longest host name, and the longest part of one between dots.
const HOST_BYTES_MAX: usize = 253;
const LABEL_BYTES_MAX: usize = 63;

pub(super) fn check_hosts(hosts: &[String]) -> Result<(), TlsError> {
    hosts.iter().try_for_each(|host| check_host(host))
}

/// Refuses a name that no member can have, or that is no file name.
pub(super) fn check_name(name: &str) -> Result<(), TlsError> {
    let fits = |letter: char| !letter.is_control() && !matches!(letter, '/' | '=' | ',');
    let plain = name.chars().all(fits) && name.trim() == name && !name.starts_with('.');
    if plain && !name.is_empty() && name.len() <= NAME_BYTES_MAX {
        return Ok(());
    }
    Err(TlsError::Request {
        flag: "name",
        value: name.to_owned(),
        allowed: "a name of 1 to 128 bytes without / = , or control characters, and no dot first",
    })
}

/// Refuses a name whose files would be those of the authority, or could be another name's key.
pub(super) fn check_file_name(name: &str, taken: &[&str]) -> Result<(), TlsError> {
    let files = [format!("{name}.pem"), format!("{name}-key.pem")];
    if !name.ends_with("-key") && !files.iter().any(|file| taken.contains(&file.as_str())) {
        return Ok(());
    }
    Err(TlsError::Request {
        flag: "name",
        value: name.to_owned(),
        allowed: "another name than ca and crl, whose files the authority has, and none that ends in -key",
    })
}

/// Refuses what is neither an IP address nor a host name, which may begin with `*.`.
fn check_host(host: &str) -> Result<(), TlsError> {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_');
    let label = |label: &str| {
        let ends = label.starts_with('-') || label.ends_with('-');
        !ends && (1..=LABEL_BYTES_MAX).contains(&label.len()) && label.bytes().all(fits)
    };
    let named = host.strip_prefix("*.").unwrap_or(host);
    // A number at the end is part of an address that is none, such as 10.0.0.300.
    let numeric = |label: &str| label.bytes().all(|byte| byte.is_ascii_digit());
    let is_name = host.len() <= HOST_BYTES_MAX
        && named.split('.').all(label)
        && !named.rsplit('.').next().is_some_and(numeric);
    if is_name || host.parse::<IpAddr>().is_ok() {
        return Ok(());
    }
    Err(TlsError::Request {
        flag: "host",
        value: host.to_owned(),
        allowed: "a host name or an IP address, without a port, like n1.example.com, 10.0.0.1 or fe80::1",
    })
}
