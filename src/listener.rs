//! Where connections come in: two listeners, taken over from systemd or bound, and the loop that
//! accepts.
//!
//! The loop never ends by an error. A process that has no file descriptor left, or a machine that
//! has none, gets them back when somebody leaves; until then the loop waits a little and says so once
//! in a while. Every accepted socket holds a [`Slot`], and there are fewer slots than the process may
//! open files, so that the database and the operator can always be reached.

pub mod accept;

use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};

use listenfd::ListenFd;
use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;
use tokio::net::TcpListener;

pub use accept::{Accepted, Slot, Slots, accept_until};

/// Connections that wait in the kernel until they are accepted. After a restart all devices come
/// back within seconds; this is some hundred milliseconds of them. The kernel cuts it to
/// `net.core.somaxconn` (4096 by default).
const BACKLOG: i32 = 1024;

/// Open files that connections of devices can never use: database connections and SQLite's files,
/// the listeners, the operator's connections, keys and the log, with room.
pub const FILES_RESERVE: usize = 256;

/// The names under which systemd may hand the listeners over (`FileDescriptorName=`).
const NAMES: [&str; 2] = ["public", "operator"];

/// Why there is no listener.
#[derive(Debug, Error)]
pub enum ListenError {
    /// The address cannot be had.
    #[error("cannot listen on {address}: {source}")]
    Bind {
        /// The operator's own choice, so it may be shown.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// What systemd handed over is no listening TCP socket.
    #[error("the {name} listener that was handed over is not a TCP socket: {source}")]
    Inherited {
        /// Which.
        name: &'static str,
        /// Why.
        source: io::Error,
    },
    /// The limit of open files leaves no room for connections.
    #[error("only {limit} open files are allowed; at least {} are needed (ulimit -n)", FILES_RESERVE * 2)]
    TooFewFiles {
        /// The limit.
        limit: u64,
    },
}

/// The relay's two listeners.
pub struct Listeners {
    /// Where devices connect.
    pub public: TcpListener,
    /// Where the operator looks.
    pub operator: TcpListener,
}

impl Listeners {
    /// Takes over what systemd has handed over, and binds the rest. `names` is `LISTEN_FDNAMES`;
    /// without names that we know, the first one is public and the second the operator's.
    ///
    /// # Errors
    /// [`ListenError`] if an address cannot be had or is no TCP socket.
    pub fn open(
        public: SocketAddr,
        operator: SocketAddr,
        mut inherited: ListenFd,
        names: Option<&str>,
    ) -> Result<Self, ListenError> {
        let [first, second] = positions(names.unwrap_or_default());
        Ok(Self {
            public: open_one(&mut inherited, first, NAMES[0], public)?,
            operator: open_one(&mut inherited, second, NAMES[1], operator)?,
        })
    }
}

/// Takes over the only listener that systemd has handed to a worker, or binds it.
///
/// # Errors
/// [`ListenError`] if the address cannot be had or is no TCP socket.
pub fn open_operator(
    operator: SocketAddr,
    inherited: &mut ListenFd,
) -> Result<TcpListener, ListenError> {
    open_one(inherited, 0, NAMES[1], operator)
}

/// How many connections there may be: what the operator wants, within what the process may open.
/// Raises the soft limit of open files to the hard one first.
///
/// # Errors
/// [`ListenError::TooFewFiles`] if the limit is below twice [`FILES_RESERVE`].
pub fn connections_allowed(wanted: usize) -> Result<usize, ListenError> {
    // Where the limit cannot be raised it can be read; where it cannot be read there is none.
    let limit = rlimit::increase_nofile_limit(u64::MAX)
        .or_else(|_| rlimit::getrlimit(rlimit::Resource::NOFILE).map(|(soft, _)| soft))
        .unwrap_or(u64::MAX);
    within_files(wanted, limit)
}

fn within_files(wanted: usize, limit: u64) -> Result<usize, ListenError> {
    let files = usize::try_from(limit).unwrap_or(usize::MAX);
    if files < FILES_RESERVE * 2 {
        return Err(ListenError::TooFewFiles { limit });
    }
    Ok(wanted.min(files - FILES_RESERVE))
}

/// Where each of [`NAMES`] stands among the descriptors that were handed over. Descriptors with
/// other names (systemd's default is the unit's) count by their order.
fn positions(names: &str) -> [usize; 2] {
    let names: Vec<&str> = names.split(':').collect();
    let named = NAMES.map(|wanted| names.iter().position(|name| *name == wanted));
    match named {
        [Some(public), Some(operator)] => [public, operator],
        [Some(public), None] => [public, usize::MAX],
        [None, Some(operator)] => [usize::MAX, operator],
        [None, None] => [0, 1],
    }
}

fn open_one(
    inherited: &mut ListenFd,
    position: usize,
    name: &'static str,
    address: SocketAddr,
) -> Result<TcpListener, ListenError> {
    let handed_over = inherited
        .take_tcp_listener(position)
        .map_err(|source| ListenError::Inherited { name, source })?;
    match handed_over {
        Some(listener) => adopt(listener).map_err(|source| ListenError::Inherited { name, source }),
        None => {
            bind(address).and_then(adopt).map_err(|source| ListenError::Bind { address, source })
        }
    }
}

fn bind(address: SocketAddr) -> io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // A relay that comes back must not wait for the last one's connections to be forgotten.
    socket.set_reuse_address(true)?;
    if address.is_ipv6() {
        // [::] means everybody, whatever the machine's default.
        socket.set_only_v6(false)?;
    }
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket.into())
}

fn adopt(listener: StdListener) -> io::Result<TcpListener> {
    listener.set_nonblocking(true)?;
    TcpListener::from_std(listener)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn any_port() -> SocketAddr {
        "127.0.0.1:0".parse().unwrap()
    }

    #[test]
    fn listeners_are_found_by_name_or_by_order() {
        assert_eq!(positions(""), [0, 1]);
        assert_eq!(positions("sealwire.socket:sealwire.socket"), [0, 1]);
        assert_eq!(positions("operator:public"), [1, 0]);
        assert_eq!(positions("other:public"), [1, usize::MAX]);
        assert_eq!(positions("operator"), [usize::MAX, 0]);
    }

    #[test]
    fn connections_leave_files_for_the_database() {
        assert_eq!(within_files(100_000, 1024).unwrap(), 1024 - FILES_RESERVE);
        assert_eq!(within_files(100, 1024).unwrap(), 100);
        assert_eq!(within_files(100, u64::MAX).unwrap(), 100);
        assert!(matches!(within_files(100, 511), Err(ListenError::TooFewFiles { limit: 511 })));
    }

    #[tokio::test]
    async fn an_address_in_use_is_an_error_that_names_it() {
        let first = Listeners::open(any_port(), any_port(), ListenFd::empty(), None).unwrap();
        let taken = first.public.local_addr().unwrap();
        let error = Listeners::open(taken, any_port(), ListenFd::empty(), None).err().unwrap();
        assert!(error.to_string().contains(&taken.to_string()), "{error}");
    }
}
