//! The pause program: holds a pod's namespaces, and as PID 1 of a shared PID namespace buries its dead.
//!
//! No libc: four system calls. Signals stay blocked and are taken one by one, so no handler is needed, and
//! the kernel keeps a blocked signal for PID 1 where it would drop an unhandled one (signal(7)).
#![no_std]
#![no_main]

use core::arch::{asm, global_asm};

#[cfg(target_arch = "x86_64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 14;
    pub const WAIT4: usize = 61;
    pub const EXIT_GROUP: usize = 231;
    pub const RT_SIGTIMEDWAIT: usize = 128;
}

#[cfg(target_arch = "aarch64")]
mod number {
    pub const RT_SIGPROCMASK: usize = 135;
    pub const WAIT4: usize = 260;
    pub const EXIT_GROUP: usize = 94;
    pub const RT_SIGTIMEDWAIT: usize = 137;
}

const SIGINT: usize = 2;
const SIGTERM: usize = 15;
const SIGCHLD: usize = 17;
const WNOHANG: usize = 1;
const EVERY_CHILD: usize = usize::MAX;

// The kernel starts a program with the stack aligned to 16 bytes; a call keeps it as the ABI wants it.
#[cfg(target_arch = "x86_64")]
global_asm!(".globl _start", "_start:", "xor ebp, ebp", "call {run}", run = sym run);
#[cfg(target_arch = "aarch64")]
global_asm!(".globl _start", "_start:", "bl {run}", run = sym run);

#[cfg(target_arch = "x86_64")]
fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: the calls below read and write only what their pointers lead to: one local mask, or nothing.
    unsafe {
        asm!("syscall", inlateout("rax") number => result, in("rdi") a, in("rsi") b, in("rdx") c, in("r10") d,
            out("rcx") _, out("r11") _);
    }
    result
}

#[cfg(target_arch = "aarch64")]
fn call(number: usize, a: usize, b: usize, c: usize, d: usize) -> isize {
    let result;
    // SAFETY: the calls below read and write only what their pointers lead to: one local mask, or nothing.
    unsafe {
        asm!("svc 0", in("x8") number, inlateout("x0") a => result, in("x1") b, in("x2") c, in("x3") d);
    }
    result
}

extern "C" fn run() -> ! {
    let mask: u64 = 1 << (SIGINT - 1) | 1 << (SIGTERM - 1) | 1 << (SIGCHLD - 1);
    let wanted = &raw const mask as usize;
    call(number::RT_SIGPROCMASK, 0, wanted, 0, 8);
    loop {
        match call(number::RT_SIGTIMEDWAIT, wanted, 0, 0, 8) as usize {
            SIGINT | SIGTERM => break,
            // One signal may stand for several dead.
            SIGCHLD => while call(number::WAIT4, EVERY_CHILD, 0, WNOHANG, 0) > 0 {},
            _ => {}
        }
    }
    loop {
        call(number::EXIT_GROUP, 0, 0, 0, 0);
    }
}

#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {
        call(number::EXIT_GROUP, 1, 0, 0, 0);
    }
}
