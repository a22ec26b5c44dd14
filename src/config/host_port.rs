//! `host:port`, checked when it is made. Names are resolved where they are used: they may change.

use std::fmt;
use std::net::IpAddr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// A name or an IP address (IPv6 in brackets), and a port that is not 0.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct HostPort(String);

/// Why a text is not one.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is not host:port: write a name or an address and a port, as in node1.example.com:7480 or [::1]:7480")]
pub struct HostPortError(String);

impl HostPort {
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// True for `0.0.0.0` and `[::]`, which one can listen on but not reach.
    pub fn is_unspecified(&self) -> bool {
        let host = self.0.rsplit_once(':').map_or("", |(host, _)| host);
        host.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified())
    }
}

impl FromStr for HostPort {
    type Err = HostPortError;

    fn from_str(text: &str) -> Result<Self, HostPortError> {
        let fault = || HostPortError(text.chars().take(256).collect());
        let (host, port) = text.rsplit_once(':').ok_or_else(fault)?;
        let bracketed = host.strip_prefix('[').and_then(|host| host.strip_suffix(']'));
        let host_is_good = match bracketed {
            Some(ip) => ip.parse::<std::net::Ipv6Addr>().is_ok(),
            None => {
                !host.is_empty() && host.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_'))
            }
        };
        let port_is_good = port.bytes().all(|b| b.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port != 0);
        if host_is_good && port_is_good { Ok(Self(text.to_string())) } else { Err(fault()) }
    }
}

impl TryFrom<String> for HostPort {
    type Error = HostPortError;
    fn try_from(text: String) -> Result<Self, HostPortError> {
        text.parse()
    }
}

impl From<HostPort> for String {
    fn from(host_port: HostPort) -> String {
        host_port.0
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_with_a_port_are_taken() {
        for good in ["a:1", "node-1.example.com:7480", "192.0.2.1:7480", "[2001:db8::1]:7480"] {
            assert_eq!(good.parse::<HostPort>().map(|it| it.to_string()), Ok(good.to_string()));
        }
        assert!("0.0.0.0:1".parse::<HostPort>().expect("good").is_unspecified());
        assert!("[::]:1".parse::<HostPort>().expect("good").is_unspecified());
        assert!(!"a:1".parse::<HostPort>().expect("good").is_unspecified());
    }

    #[test]
    fn anything_else_is_refused_and_named() {
        for bad in ["", "a", ":1", "a:", "a:0", "a:65536", "a:+1", "http://a:1", "2001:db8::1:7480", "a b:1", "[a]:1"] {
            let error = bad.parse::<HostPort>().expect_err(bad).to_string();
            assert!(error.contains(&format!("'{bad}'")), "{error}");
        }
    }
}
