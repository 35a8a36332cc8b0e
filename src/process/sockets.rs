//! The sockets on which the process listens, whether it has made them itself or was handed them.

use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;

use serde::{Deserialize, Serialize};

use crate::config::Settings;

/// What a socket is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum For {
    /// Requests.
    Requests,
    /// The admin API.
    Admin,
}

/// One of them.
pub struct Socket {
    /// What it is for.
    pub of: For,
    /// Where it listens.
    pub address: SocketAddr,
    /// It.
    pub listener: TcpListener,
}

/// All of them.
#[derive(Default)]
pub struct Sockets {
    /// Each.
    pub all: Vec<Socket>,
    /// Another process had them before.
    pub were_handed: bool,
}

impl Sockets {
    /// Those a configuration asks for: taken from those that are there, and made where they are not. What nobody asks for
    /// any more is closed.
    pub fn open(settings: &Settings, mut there: Self) -> Result<Self, String> {
        let requests = settings.listeners.iter().map(|listener| (For::Requests, listener.address));
        let wanted = requests.chain([(For::Admin, settings.admin.address)]);
        let open = |(of, address)| {
            let known = there.all.iter().position(|socket| socket.of == of && socket.address == address);
            let socket = match known {
                Some(at) => there.all.swap_remove(at),
                None => Socket { of, address, listener: TcpListener::bind(address).map_err(|e| refused(of, address, &e))? },
            };
            socket.listener.set_nonblocking(true).map_err(|e| refused(of, address, &e))?;
            Ok(socket)
        };
        let all = wanted.map(open).collect::<Result<_, String>>()?;
        Ok(Self { all, were_handed: there.were_handed })
    }

    /// From what was handed over.
    pub fn adopt(said: Vec<(For, SocketAddr)>, handed: Vec<OwnedFd>) -> Self {
        let socket = |((of, address), fd)| Socket { of, address, listener: TcpListener::from(fd) };
        Self { all: said.into_iter().zip(handed).map(socket).collect(), were_handed: true }
    }

    /// The same sockets once more; as long as one of them is open, somebody may connect to them.
    pub fn again(&self) -> std::io::Result<Self> {
        let again = |socket: &Socket| Ok(Socket { listener: socket.listener.try_clone()?, ..*socket });
        let all = self.all.iter().map(again).collect::<std::io::Result<_>>()?;
        Ok(Self { all, ..*self })
    }

    /// Those of one kind.
    pub fn of(self, kind: For) -> impl Iterator<Item = (SocketAddr, TcpListener)> {
        self.all.into_iter().filter(move |socket| socket.of == kind).map(|socket| (socket.address, socket.listener))
    }
}

fn refused(of: For, address: SocketAddr, error: &std::io::Error) -> String {
    let whose = if of == For::Admin { " (admin)" } else { "" };
    format!("cannot listen on {address}{whose}: {error}")
}
