//! Values that configuration spells in a notation of its own: addresses, initial members, durations.

use std::{
    fmt,
    path::{Path, PathBuf},
    time::Duration,
};

/// An address by name or number, with its port. Names are resolved where the address is used.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct HostPort {
    /// A host name, an IPv4 address, or an IPv6 address without brackets, with its scope if it has one (`fe80::1%eth0`).
    pub host: String,
    /// The port; 0 lets the system choose where this is listened on.
    pub port: u16,
}

impl HostPort {
    /// Reads `HOST:PORT`, `1.2.3.4:PORT`, `[::1]:PORT` or `[fe80::1%eth0]:PORT`.
    pub fn parse(text: &str) -> Option<Self> {
        let (host, port) = text.rsplit_once(':')?;
        let digits = port.bytes().all(|byte| byte.is_ascii_digit());
        let port = port.parse().ok().filter(|_| digits)?;
        let host = match host.strip_prefix('[') {
            Some(rest) => {
                let host = rest.strip_suffix(']')?;
                let (address, scope) = host.split_once('%').unwrap_or((host, "1"));
                address
                    .parse::<std::net::Ipv6Addr>()
                    .ok()
                    .filter(|_| is_scope(scope))?;
                host
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

    /// Whether its scope is an interface of this machine, which is another one elsewhere.
    pub fn has_scope(&self) -> bool {
        self.host.contains('%')
    }

    /// As the authority of a URL, where a scope is written with `%25` (RFC 6874).
    pub fn authority(&self) -> String {
        self.to_string().replace('%', "%25")
    }

    /// Whether it is `0.0.0.0` or `[::]`.
    pub fn is_every_interface(&self) -> bool {
        let parsed = self.host.parse::<std::net::IpAddr>();
        parsed.is_ok_and(|address| address.is_unspecified())
    }
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ClientAddress {
    /// A port, by TCP.
    Tcp(HostPort),
    /// A port, by TLS.
    Tls(HostPort),
    Unix(PathBuf),
}

impl ClientAddress {
    /// Reads `HOST:PORT`, `http://HOST:PORT`, `https://HOST:PORT`, `unix:///PATH`, `unix:/PATH` or `unix://RELATIVE/PATH`.
    pub fn parse(text: &str) -> Option<Self> {
        if let Some(rest) = text.strip_prefix("unix:") {
            // gRPC writes an absolute path without slashes before it, too.
            let path = rest.strip_prefix("//").unwrap_or(rest);
            let path = Some(path).filter(|path| rest != *path || path.starts_with('/'))?;
            let path = Path::new(path);
            // A path that ends in `/` has a file name too, as Rust reads it.
            let named = path.file_name().is_some() && !text.ends_with('/');
            return named.then(|| Self::Unix(path.to_owned()));
        }
        let (authority, kind): (_, fn(HostPort) -> Self) = match text.split_once("://") {
            Some(("http", authority)) => (authority, Self::Tcp),
            Some(("https", authority)) => (authority, Self::Tls),
            Some(_) => return None,
            None => return HostPort::parse(text).map(Self::Tcp),
        };
        let authority = authority.strip_suffix('/').unwrap_or(authority);
        HostPort::parse(&authority.replace("%25", "%")).map(kind)
    }

    /// The port, by TCP or TLS.
    pub fn tcp(&self) -> Option<&HostPort> {
        match self {
            Self::Tcp(address) | Self::Tls(address) => Some(address),
            Self::Unix(_) => None,
        }
    }

    /// The URL that clients use.
    pub fn url(&self) -> String {
        match self {
            Self::Tcp(address) => format!("http://{}", address.authority()),
            Self::Tls(address) => format!("https://{}", address.authority()),
            Self::Unix(path) => format!("unix://{}", path.display()),
        }
    }
}

impl fmt::Display for ClientAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(address) => address.fmt(f),
            Self::Tls(address) => write!(f, "https://{address}"),
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
        }
    }
}

/// Whether this can be the scope of an address: the name or the number of a network interface.
fn is_scope(scope: &str) -> bool {
    let fits = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b'%' | b'[' | b']');
    !scope.is_empty() && scope.len() <= 15 && scope.bytes().all(fits)
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
        if peer.has_scope() {
            return None;
        }
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
pub(super) fn go_duration(text: &str) -> Option<Duration> {
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
            "[fe80::1%eth0]:2379",
            "[fe80::1%3]:0",
            "n-1.example_x:65535",
        ] {
            let parsed = HostPort::parse(text).map(|address| address.to_string());
            assert_eq!(parsed.as_deref(), Some(text));
        }
        let bad = [
            "", "a", ":1", "a:", "a:65536", "a:-1", "a:+1", "::1:2", "[::1]", "[a]:1",
        ];
        let scopes = [
            "[fe80::1%]:1",
            "[fe80::1%a/b]:1",
            "[fe80::1%a%b]:1",
            "10.0.0.1%eth0:1",
        ];
        for text in bad
            .into_iter()
            .chain(["http://a:1", "a b:1", "[::1:1", "a:1:2"])
            .chain(scopes)
        {
            assert_eq!(HostPort::parse(text), None, "{text:?} is no HOST:PORT");
        }
    }

    #[test]
    fn addresses_of_clients() {
        for (text, shown, url) in [
            ("127.0.0.1:2379", "127.0.0.1:2379", "http://127.0.0.1:2379"),
            ("http://[::1]:2379/", "[::1]:2379", "http://[::1]:2379"),
            ("https://n1:2379", "https://n1:2379", "https://n1:2379"),
            (
                "http://[fe80::1%25eth0]:1",
                "[fe80::1%eth0]:1",
                "http://[fe80::1%25eth0]:1",
            ),
            (
                "unix:///run/q.sock",
                "unix:///run/q.sock",
                "unix:///run/q.sock",
            ),
            ("unix:/q.sock", "unix:///q.sock", "unix:///q.sock"),
            ("unix://q.sock", "unix://q.sock", "unix://q.sock"),
        ] {
            let parsed = ClientAddress::parse(text).unwrap();
            assert_eq!(parsed.to_string(), shown, "{text}");
            assert_eq!(parsed.url(), url, "{text}");
        }
        for text in [
            "",
            "unix://",
            "unix:q.sock",
            "unix:///",
            "unix:///run/",
            "unix://..",
            "/run/q.sock",
            "ftp://a:1",
            "unixs:///run/q.sock",
            "http://a",
            "http://a:1/path",
        ] {
            assert_eq!(ClientAddress::parse(text), None, "{text:?} is no address");
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
            "n1=[fe80::1%eth0]:1",
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
