//! Values that configuration spells in a notation of its own: addresses, initial members, durations.

use std::fmt;
use std::time::Duration;

/// An address by name or number, with its port. Names are resolved where the address is used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A host name, an IPv4 address, or an IPv6 address without brackets.
    pub host: String,
    /// The port; 0 lets the system choose where this is listened on.
    pub port: u16,
}

impl HostPort {
    /// Reads `HOST:PORT`, `1.2.3.4:PORT` or `[::1]:PORT`.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let host = rest.strip_suffix(']')?;
                host.parse::<std::net::Ipv6Addr>().ok().map(|_| host)?
            }
            None => Some(host).filter(|host| is_host(host))?,
        };
        Some(Self {
            host: host.to_owned(),
            port,
        })
    }
}

impl HostPort {
    /// Whether others can connect to it: port 0 and the addresses that mean "all interfaces" only make sense to listen on.
    pub fn is_reachable(&self) -> bool {
        self.port != 0 && !self.is_every_interface()
    }

    /// Whether it is `0.0.0.0` or `[::]`.
    pub fn is_every_interface(&self) -> bool {
        let parsed = self.host.parse::<std::net::IpAddr>();
        parsed.is_ok_and(|address| address.is_unspecified())
    }
}

/// Whether this can be a host name or an IPv4 address.
fn is_host(host: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    !host.is_empty() && host.len() <= 253 && host.bytes().all(fits)
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.host.contains(':') {
            write!(f, "[{}]:{}", self.host, self.port)
        } else {
            write!(f, "{}:{}", self.host, self.port)
        }
    }
}

/// A member that a new cluster begins with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InitialMember {
    /// Its name.
    pub name: String,
    /// Where the other members reach it.
    pub peer: HostPort,
}

impl InitialMember {
    /// Reads `name=host:port`. A URL is accepted too, since `member add` prints URLs; its scheme means nothing here.
    pub(super) fn parse(text: &str) -> Option<Self> {
        let (name, address) = text.split_once('=')?;
        let address = address.trim();
        let address = ["http://", "https://"]
            .iter()
            .find_map(|scheme| address.strip_prefix(scheme))
            .map_or(address, |rest| rest.strip_suffix('/').unwrap_or(rest));
        let peer = HostPort::parse(address).filter(HostPort::is_reachable)?;
        let name = name.trim();
        is_name(name).then(|| Self {
            name: name.to_owned(),
            peer,
        })
    }
}

/// Whether this can name a member: it must survive `name=host:port,…` and a terminal.
pub(super) fn is_name(name: &str) -> bool {
    let clean = |letter: char| !letter.is_control() && !matches!(letter, '=' | ',');
    !name.is_empty() && name.len() <= 128 && name.trim() == name && name.chars().all(clean)
}

/// Nanoseconds in each unit of a Go duration.
const UNITS: [(&str, f64); 8] = [
    // Longer names before the units they begin with.
    ("ns", 1.0),
    ("us", 1e3),
    ("µs", 1e3),
    ("μs", 1e3),
    ("ms", 1e6),
    ("s", 1e9),
    ("m", 6e10),
    ("h", 3.6e12),
];

/// The longest retention: a hundred years, which fits every representation on the way.
const RETENTION_MAX: Duration = Duration::from_hours(876_000);

/// Reads a retention period: a Go duration (`1h30m`, `1.5h`, `300ms`), or a bare whole number of hours.
pub(super) fn retention_period(text: &str) -> Option<Duration> {
    let found = match text.parse::<u64>() {
        Ok(hours) => Duration::from_secs(hours.checked_mul(3_600)?),
        Err(_) => go_duration(text)?,
    };
    (found <= RETENTION_MAX).then_some(found)
}

/// Reads a Go duration that is not negative.
fn go_duration(text: &str) -> Option<Duration> {
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    let mut nanos = 0.0;
    if rest.is_empty() {
        return None;
    }
    while !rest.is_empty() {
        let digits = rest.find(|letter: char| !letter.is_ascii_digit() && letter != '.')?;
        let (number, tail) = rest.split_at(digits);
        let (unit, scale) = UNITS.iter().find(|(unit, _)| tail.starts_with(unit))?;
        nanos += number.parse::<f64>().ok()? * scale;
        rest = &tail[unit.len()..];
    }
    Duration::try_from_secs_f64(nanos / 1e9).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses() {
        for text in [
            "127.0.0.1:2379",
            "localhost:0",
            "[::1]:2380",
            "n-1.example_x:65535",
        ] {
            let parsed = HostPort::parse(text).map(|address| address.to_string());
            assert_eq!(parsed.as_deref(), Some(text));
        }
        let bad = [
            "", "a", ":1", "a:", "a:65536", "a:-1", "a:+1", "::1:2", "[::1]", "[a]:1",
        ];
        for text in bad
            .into_iter()
            .chain(["http://a:1", "a b:1", "[::1:1", "a:1:2"])
        {
            assert_eq!(HostPort::parse(text), None, "{text:?} is no HOST:PORT");
        }
    }

    #[test]
    fn initial_members() {
        let member = InitialMember::parse("n1=10.0.0.1:2380").unwrap();
        assert_eq!((member.name.as_str(), member.peer.port), ("n1", 2380));
        // As etcdctl prints it.
        for text in ["n1=https://10.0.0.1:2380", "n1=http://10.0.0.1:2380/"] {
            assert_eq!(InitialMember::parse(text), Some(member.clone()), "{text}");
        }
        for text in [
            "n1",
            "=a:1",
            "n1=a:0",
            "n1=a",
            "a,b=c:1",
            "n1=0.0.0.0:1",
            "n1=[::]:1",
        ] {
            assert_eq!(
                InitialMember::parse(text),
                None,
                "{text:?} is no name=host:port"
            );
        }
    }

    #[test]
    fn retention_periods() {
        let good = [
            ("0", 0),
            ("0s", 0),
            ("1", 3_600_000),
            ("24h", 86_400_000),
            ("30m", 1_800_000),
            ("1h30m", 5_400_000),
            ("1.5h", 5_400_000),
            ("300ms", 300),
            ("2m0.5s", 120_500),
            ("2000us", 2),
        ];
        for (text, millis) in good {
            assert_eq!(
                retention_period(text),
                Some(Duration::from_millis(millis)),
                "{text}"
            );
        }
        for text in [
            "",
            "-1",
            "-1h",
            "h",
            "1d",
            "1h5",
            "1..h",
            "1e3s",
            "99999999999999",
            "inf",
        ] {
            assert_eq!(retention_period(text), None, "{text:?} is no duration");
        }
    }
}
