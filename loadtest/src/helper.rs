//! A process of this program that serves something on a port of loopback, beside the one that measures:
//! what it takes from the machine is then seen apart, as it would be in the world.
//!
//! Holds always: it ends with whoever started it, however that ends: its standard input closes.

use std::io::Write;
use std::process::Stdio;

use anyhow::{Context, Result};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::timeout;

use crate::limits::ANSWER_DEADLINE;
use crate::process::Process;

/// A process that serves; dropped, it ends.
pub(crate) struct Helper {
    /// Ended when this is dropped.
    _child: Child,
    process: Process,
    port: u16,
}

impl Helper {
    /// Starts this program with these arguments.
    pub(crate) async fn start(arguments: &[String]) -> Result<Self> {
        let mut child = Command::new(std::env::current_exe()?)
            .args(arguments)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .context("starting a process beside this one")?;
        let process = Process::find(child.id().context("it has ended at once")?)?;
        let output = child.stdout.take().context("its output")?;
        let mut port = String::new();
        timeout(ANSWER_DEADLINE, BufReader::new(output).read_line(&mut port)).await??;
        Ok(Self { _child: child, process, port: port.trim().parse().context("its port")? })
    }

    /// Its process, to be looked at.
    pub(crate) fn process(&self) -> Process {
        self.process
    }

    /// Where it serves.
    pub(crate) fn port(&self) -> u16 {
        self.port
    }
}

/// The other side: takes connections on a port of its own, which it says on standard output, until
/// nobody holds its standard input open.
pub(crate) async fn serve(mut each: impl FnMut(TcpStream)) -> Result<()> {
    let listener = TcpListener::bind("127.0.0.1:0").await?;
    writeln!(std::io::stdout(), "{}", listener.local_addr()?.port())?;
    let (mut input, mut byte) = (tokio::io::stdin(), [0]);
    loop {
        tokio::select! {
            accepted = listener.accept() => each(accepted?.0),
            _ = input.read(&mut byte) => return Ok(()),
        }
    }
}
