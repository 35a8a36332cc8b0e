//! The listening sockets of the process: opened by itself, or inherited from its predecessor. It accepts no connection.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::config::Settings;

/// The purpose of a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum SocketPurpose {
    /// Requests.
    Requests,
    /// The admin API.
    Admin,
}

/// A listening socket.
pub struct Socket {
    /// Its purpose.
    pub purpose: SocketPurpose,
    /// The address on which it listens.
    pub address: SocketAddr,
    /// The socket.
    pub listener: TcpListener,
}

/// The listening sockets of one process.
#[derive(Default)]
pub struct Sockets {
    /// The sockets, in no order.
    pub all: Vec<Socket>,
    /// Whether a predecessor has handed them over.
    pub were_inherited: bool,
}

impl Sockets {
    /// The sockets that a configuration needs: inherited ones where they fit, new ones otherwise. Inherited sockets that the
    /// configuration does not need are closed.
    pub fn open(settings: &Settings, mut inherited: Self) -> Result<Self, String> {
        let requests = settings.listeners.iter().map(|listener| (SocketPurpose::Requests, listener.address));
        let wanted = requests.chain([(SocketPurpose::Admin, settings.admin.address)]);
        let open = |(purpose, address)| {
            let position = inherited.all.iter().position(|socket| socket.purpose == purpose && socket.address == address);
            let socket = match position {
                Some(at) => inherited.all.swap_remove(at),
                None => Socket { purpose, address, listener: TcpListener::bind(address).map_err(|e| refused(purpose, address, &e))? },
            };
            socket.listener.set_nonblocking(true).map_err(|e| refused(purpose, address, &e))?;
            Ok(socket)
        };
        let all = wanted.map(open).collect::<Result<_, String>>()?;
        Ok(Self { all, were_inherited: inherited.were_inherited })
    }

    /// The sockets that a predecessor has handed over: their descriptions, and the descriptors in the same order.
    pub fn adopt(descriptions: Vec<(SocketPurpose, SocketAddr)>, descriptors: Vec<OwnedFd>) -> Self {
        let socket = |((purpose, address), fd)| Socket { purpose, address, listener: TcpListener::from(fd) };
        Self { all: descriptions.into_iter().zip(descriptors).map(socket).collect(), were_inherited: true }
    }

    /// Duplicates the descriptors. A socket accepts connections into its queue while any duplicate of it is open.
    pub fn try_clone(&self) -> std::io::Result<Self> {
        let duplicate = |socket: &Socket| Ok(Socket { listener: socket.listener.try_clone()?, ..*socket });
        let all = self.all.iter().map(duplicate).collect::<std::io::Result<_>>()?;
        Ok(Self { all, ..*self })
    }

    /// The sockets with one purpose; the others are closed.
    pub fn into_listeners(self, purpose: SocketPurpose) -> impl Iterator<Item = (SocketAddr, TcpListener)> {
        self.all.into_iter().filter(move |socket| socket.purpose == purpose).map(|socket| (socket.address, socket.listener))
    }
}

fn refused(purpose: SocketPurpose, address: SocketAddr, error: &std::io::Error) -> String {
    let suffix = if purpose == SocketPurpose::Admin { " (admin)" } else { "" };
    format!("cannot listen on {address}{suffix}: {error}")
}
