// SPDX-License-Identifier: GPL-2.0-or-later
//! Does to vm-memory what the script on standard input says, line by line, and prints each line
//! with what came of it. The script's language is told in tests/vm_memory_script.py.

use std::io::BufRead;
use std::panic::{catch_unwind, set_hook, AssertUnwindSafe};
use std::sync::atomic::Ordering::Relaxed;
use std::sync::Arc;

use vm_memory::bitmap::{AtomicBitmap, Bitmap, BitmapSlice, BS};
use vm_memory::*;

type Slice<'a> = VolatileSlice<'a, BS<'a, AtomicBitmap>>;
type Done<T> = Result<T, GuestMemoryError>;
type Memory = GuestRegionCollection<Region>;

/// Mapped memory at any address: `GuestRegionMmap` does not take the last one.
struct Region {
    start: GuestAddress,
    mapping: MmapRegion<AtomicBitmap>,
}

impl GuestMemoryRegion for Region {
    type B = AtomicBitmap;

    fn len(&self) -> u64 {
        self.mapping.size() as u64
    }

    fn start_addr(&self) -> GuestAddress {
        self.start
    }

    fn bitmap(&self) -> BS<'_, AtomicBitmap> {
        self.mapping.bitmap().slice_at(0)
    }

    fn get_slice(&self, offset: MemoryRegionAddress, count: usize) -> Done<Slice<'_>> {
        Ok(self.mapping.get_slice(offset.raw_value() as usize, count)?)
    }
}

impl GuestMemoryRegionBytes for Region {}

/// A stream that gives its pieces one a call; an empty one is an interrupted call.
struct Pieces(Vec<Vec<u8>>);

impl ReadVolatile for Pieces {
    fn read_volatile<B: BitmapSlice>(
        &mut self,
        buf: &mut VolatileSlice<B>,
    ) -> Result<usize, VolatileMemoryError> {
        if self.0.is_empty() {
            return Ok(0);
        }
        let piece = self.0.remove(0);
        if piece.is_empty() {
            let kind = std::io::ErrorKind::Interrupted;
            return Err(VolatileMemoryError::IOError(kind.into()));
        }
        let n = piece.len().min(buf.len());
        buf.write_slice(&piece[..n], 0)?;
        Ok(n)
    }
}

fn error(error: GuestMemoryError) -> String {
    use GuestMemoryError::*;
    match error {
        InvalidGuestAddress(addr) => format!("InvalidGuestAddress {}", addr.raw_value()),
        IOError(inner) => format!("IOError {:?}", inner.kind()),
        PartialBuffer { expected, completed } => format!("PartialBuffer {expected} {completed}"),
        other => format!("{other:?}"),
    }
}

fn told<T: std::fmt::Debug>(result: Done<T>) -> String {
    result.map_or_else(error, |value| format!("ok {value:?}"))
}

fn hex(data: &[u8]) -> String {
    data.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes(text: &str) -> Vec<u8> {
    let digits = text.trim_matches('-');
    (0..digits.len() / 2)
        .map(|at| u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).unwrap())
        .collect()
}

fn number(text: &str) -> u64 {
    text.parse().unwrap()
}

/// One access of `Bytes`, whatever its addresses are; None for what is no access.
fn access<A, B: Bytes<A, E = GuestMemoryError>>(on: &B, at: A, w: &[&str]) -> Option<String> {
    let count = || number(w[1]) as usize;
    Some(match w[0] {
        "write" => told(on.write(&bytes(w[1]), at)),
        "write_slice" => told(on.write_slice(&bytes(w[1]), at)),
        "read" | "read_slice" => {
            let mut buf = bytes(w[1]);
            let done = match w[0] {
                "read" => told(on.read(&mut buf, at)),
                _ => told(on.read_slice(&mut buf, at)),
            };
            format!("{done} {}", hex(&buf))
        }
        "write_obj" => told(on.write_obj(number(w[1]), at)),
        "read_obj" => told(on.read_obj::<u64>(at)),
        "store" => match w[1] {
            "1" => told(on.store(number(w[2]) as u8, at, Relaxed)),
            "2" => told(on.store(number(w[2]) as u16, at, Relaxed)),
            "4" => told(on.store(number(w[2]) as u32, at, Relaxed)),
            _ => told(on.store(number(w[2]), at, Relaxed)),
        },
        "load" => match w[1] {
            "1" => told(on.load::<u8>(at, Relaxed)),
            "2" => told(on.load::<u16>(at, Relaxed)),
            "4" => told(on.load::<u32>(at, Relaxed)),
            _ => told(on.load::<u64>(at, Relaxed)),
        },
        "from" | "from_exact" => {
            let data = bytes(w[2]);
            let mut source = &data[..];
            let done = match w[0] {
                "from" => told(on.read_volatile_from(at, &mut source, count())),
                _ => told(on.read_exact_volatile_from(at, &mut source, count())),
            };
            format!("{done} left {}", hex(source))
        }
        "pieces" | "pieces_exact" => {
            let mut source = Pieces(w[2].split(',').map(bytes).collect());
            let done = match w[0] {
                "pieces" => told(on.read_volatile_from(at, &mut source, count())),
                _ => told(on.read_exact_volatile_from(at, &mut source, count())),
            };
            format!("{done} left {}", source.0.len())
        }
        "to" | "to_all" => {
            let mut buf = vec![0u8; number(w[2]) as usize];
            let mut sink = buf.as_mut_slice();
            let done = match w[0] {
                "to" => told(on.write_volatile_to(at, &mut sink, count())),
                _ => told(on.write_all_volatile_to(at, &mut sink, count())),
            };
            format!("{done} {}", hex(&buf))
        }
        "to_vec" => {
            let mut sink = Vec::new();
            let done = told(on.write_volatile_to(at, &mut sink, count()));
            format!("{done} {}", hex(&sink))
        }
        _ => return None,
    })
}

#[allow(deprecated)]
fn try_access(memory: &Memory, at: GuestAddress, w: &[&str]) -> String {
    let mut moved: Vec<usize> = match w[2] {
        "-" => vec![],
        text => text.split(',').map(|each| number(each) as usize).collect(),
    };
    let mut calls = vec![];
    let done = memory.try_access(number(w[1]) as usize, at, |total, size, offset, region| {
        let (offset, start) = (offset.raw_value(), region.start.raw_value());
        calls.push(format!("{total},{size},{offset},{start}"));
        Ok(if moved.is_empty() { size } else { moved.remove(0) })
    });
    format!("{} {}", told(done), calls.join(";"))
}

fn question(memory: &Memory, at: GuestAddress, w: &[&str]) -> String {
    let raw = |addr: GuestAddress| addr.raw_value();
    let b = || number(w[1]);
    match w[0] {
        "check_range" => GuestMemoryBackend::check_range(memory, at, b() as usize).to_string(),
        "slices" => {
            let mut slices = GuestMemoryBackend::get_slices(memory, at, b() as usize);
            let found: Vec<String> = slices
                .by_ref()
                .map(|each| each.map_or_else(error, |slice| slice.len().to_string()))
                .collect();
            assert!(slices.next().is_none());
            found.join(",")
        }
        "stop" => match GuestMemoryBackend::get_slices(memory, at, b() as usize).stop_on_error() {
            Ok(slices) => slices.map(|each| each.len().to_string()).collect::<Vec<_>>().join(","),
            Err(inner) => error(inner),
        },
        "get_slice" => told(memory.get_slice(at, b() as usize).map(|slice| slice.len())),
        "checked_offset" => format!("{:?}", memory.checked_offset(at, b() as usize).map(raw)),
        "find" => {
            let found = memory.to_region_addr(at);
            format!("{:?}", found.map(|(r, offset)| (raw(r.start), offset.raw_value())))
        }
        "align_up" => format!("{:?}", at.checked_align_up(b()).map(raw)),
        "unchecked_align_up" => raw(at.unchecked_align_up(b())).to_string(),
        "sub" => {
            let (rest, below) = at.overflowing_sub(b());
            format!("{:?} {} {below}", at.checked_sub(b()).map(raw), raw(rest))
        }
        "add" => {
            let (sum, beyond) = at.overflowing_add(b());
            format!("{:?} {} {beyond}", at.checked_add(b()).map(raw), raw(sum))
        }
        "unchecked_add" => raw(at.unchecked_add(b())).to_string(),
        "unchecked_sub" => raw(at.unchecked_sub(b())).to_string(),
        "offset_from" => format!("{:?}", at.checked_offset_from(GuestAddress(b()))),
        "unchecked_offset_from" => at.unchecked_offset_from(GuestAddress(b())).to_string(),
        other => unreachable!("{other}"),
    }
}

fn changed<T: Default>(
    memory: &mut Memory,
    result: Result<(Memory, T), GuestRegionCollectionError>,
) -> String {
    match result {
        Ok((new, _)) => {
            *memory = new;
            "ok".into()
        }
        Err(inner) => format!("{inner:?}"),
    }
}

fn shown(memory: &Memory) -> String {
    let one = |region: &Region| {
        let mut buf = vec![0u8; region.len() as usize];
        region.read_slice(&mut buf, MemoryRegionAddress(0)).unwrap();
        format!("{}:{}", region.start.raw_value(), hex(&buf))
    };
    memory.iter().map(one).collect::<Vec<_>>().join(" ")
}

fn step(memory: &mut Memory, w: &[&str]) -> String {
    match w[0] {
        "new" => {
            *memory = Memory::new();
            return "ok".into();
        }
        "shown" => return shown(memory),
        "last_addr" => return memory.last_addr().raw_value().to_string(),
        _ => {}
    }
    let at = GuestAddress(number(w[1]));
    let rest = [&[w[0]], &w[2..]].concat();
    match w[0] {
        "insert" => {
            let mapping = MmapRegion::new(number(w[2]) as usize).unwrap();
            let result = memory.insert_region(Arc::new(Region { start: at, mapping }));
            changed(memory, result.map(|new| (new, ())))
        }
        "remove" => {
            let result = memory.remove_region(at, number(w[2]));
            changed(memory, result.map(|(new, _)| (new, ())))
        }
        "try_access" => try_access(memory, at, &rest),
        "region" => match memory.find_region(at) {
            None => "none".into(),
            Some(region) => {
                let offset = MemoryRegionAddress(number(w[2]));
                match w[3] {
                    "get_slice" => {
                        let slice = region.get_slice(offset, number(w[4]) as usize);
                        told(slice.map(|slice| slice.len()))
                    }
                    _ => access(region, offset, &w[3..]).unwrap(),
                }
            }
        },
        _ => access(memory, at, &rest).unwrap_or_else(|| question(memory, at, &rest)),
    }
}

fn main() {
    set_hook(Box::new(|_| {}));
    let mut memory = Memory::new();
    for line in std::io::stdin().lock().lines().map(Result::unwrap) {
        if line.starts_with('#') {
            println!("{line}");
            continue;
        }
        let words: Vec<&str> = line.split(' ').collect();
        let outcome = catch_unwind(AssertUnwindSafe(|| step(&mut memory, &words)));
        println!("{line} => {}", outcome.unwrap_or("panic".into()).trim());
    }
}
