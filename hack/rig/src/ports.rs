//! Free loopback ports.
//!
//! The kernel hands out ephemeral ports to outgoing connections all the time, and a control plane makes many of
//! those while its later parts still wait to be started. A port asked for with "port 0" can so be gone again by the
//! time that its program binds it. These ports come from below the ephemeral range and are held until the moment
//! of use.

use std::hash::{BuildHasher, Hasher};
use std::net::{Ipv4Addr, TcpListener};

use anyhow::{Context, Result, bail};

const LOWEST: u16 = 10_000;

/// A loopback port that nobody else can bind while this value lives.
#[derive(Debug)]
pub struct Reserved {
    listener: TcpListener,
    port: u16,
}

impl Reserved {
    /// Finds a free port and holds it.
    pub fn new() -> Result<Self> {
        let highest = first_ephemeral().clamp(LOWEST + 1_000, 32_768);
        let span = highest - LOWEST;
        let start = u16::try_from(std::hash::RandomState::new().build_hasher().finish() % u64::from(span))?;
        for step in 0..span {
            let port = LOWEST + (start + step) % span;
            if let Ok(listener) = TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
                return Ok(Self { listener, port });
            }
        }
        bail!("no free port on 127.0.0.1 between {LOWEST} and {highest}")
    }

    /// The port's number, while it is still held.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// Lets go of the port, right before its program binds it.
    pub fn release(self) -> u16 {
        drop(self.listener);
        self.port
    }
}

/// A free port for a program that is started at once.
pub fn free_port() -> Result<u16> {
    Reserved::new().map(Reserved::release).context("look for a free port")
}

fn first_ephemeral() -> u16 {
    std::fs::read_to_string("/proc/sys/net/ipv4/ip_local_port_range")
        .ok()
        .and_then(|range| range.split_whitespace().next().and_then(|low| low.parse().ok()))
        .unwrap_or(32_768)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn held_ports_differ() {
        let held: Vec<_> = (0..20).map(|_| Reserved::new().unwrap()).collect();
        let mut ports: Vec<_> = held.iter().map(Reserved::port).collect();
        ports.sort_unstable();
        ports.dedup();
        assert_eq!(ports.len(), held.len());
    }
}
