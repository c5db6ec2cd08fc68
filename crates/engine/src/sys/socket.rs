//! Stream sockets whose descriptors belong to others: what never blocks, and never raises a signal.

#![allow(unsafe_code)]

use std::io::{self, IoSlice};
use std::mem::MaybeUninit;
use std::os::fd::{BorrowedFd, RawFd};

use rustix::io::Errno;
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, ipproto, recv, send, sendmsg, shutdown,
    sockopt,
};

/// Receives what is there. Nothing, if the peer sends no more; `WouldBlock` if there is nothing yet.
pub fn receive(fd: RawFd, into: &mut [u8]) -> io::Result<usize> {
    Ok(recv(borrowed(fd)?, into, RecvFlags::DONTWAIT)?.1)
}

/// The same into memory that nothing was written to yet: the first so many bytes are written then.
pub fn receive_into(fd: RawFd, into: &mut [MaybeUninit<u8>]) -> io::Result<usize> {
    let ((received, _), _) = recv(borrowed(fd)?, into, RecvFlags::DONTWAIT)?;
    Ok(received.len())
}

/// Sends as much as there is room for.
pub fn send_some(fd: RawFd, bytes: &[u8]) -> io::Result<usize> {
    Ok(send(borrowed(fd)?, bytes, quiet())?)
}

/// The same with bytes from several places.
pub fn send_vectored(fd: RawFd, slices: &[IoSlice<'_>]) -> io::Result<usize> {
    let nothing = &mut SendAncillaryBuffer::default();
    Ok(sendmsg(borrowed(fd)?, slices, nothing, quiet())?)
}

/// Sends no more: the peer sees the end once it has read the rest.
pub fn end_sending(fd: RawFd) -> io::Result<()> {
    Ok(shutdown(borrowed(fd)?, Shutdown::Write)?)
}

/// Whether it speaks TCP: then a receive that gives less than was asked for has taken all there was.
pub fn is_tcp(fd: RawFd) -> io::Result<bool> {
    Ok(sockopt::socket_protocol(borrowed(fd)?)? == Some(ipproto::TCP))
}

/// Small writes are sent at once.
pub fn set_nodelay(fd: RawFd) -> io::Result<()> {
    Ok(sockopt::set_tcp_nodelay(borrowed(fd)?, true)?)
}

fn quiet() -> SendFlags {
    SendFlags::DONTWAIT | SendFlags::NOSIGNAL
}

fn borrowed<'fd>(fd: RawFd) -> io::Result<BorrowedFd<'fd>> {
    if fd < 0 {
        return Err(Errno::BADF.into());
    }
    // SAFETY: not -1, and used for one system call, for which a number that stands for nothing is an error and no more.
    Ok(unsafe { BorrowedFd::borrow_raw(fd) })
}
