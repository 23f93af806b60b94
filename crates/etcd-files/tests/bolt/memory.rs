//! Memory is bounded by the height of the trees and one item, not by the file: measured by counting what is allocated.

use crate::support::{Contents, numbered, write};
use allocation_counter::{AllocationInfo, measure};
use quorate_etcd_files::bolt::{Image, Layout, Measure, Writer};
use std::{fs::File, io, io::Write};

fn key(number: u32) -> [u8; 17] {
    let mut key = [b'_'; 17];
    key[..4].copy_from_slice(&number.to_be_bytes());
    key
}

fn measure_file(count: u32, value_bytes: usize) -> Layout {
    let mut measure = Measure::new();
    measure.bucket(b"key").expect("a bucket");
    for number in 0..count {
        measure
            .item(&key(number), value_bytes as u64)
            .expect("sorted");
    }
    measure.finish().expect("a layout")
}

fn write_file(out: impl Write, layout: Layout, count: u32, value: &[u8]) {
    let mut writer = Writer::new(out, layout).expect("it takes all");
    writer.bucket(b"key").expect("a bucket");
    for number in 0..count {
        writer.item(&key(number), &[value]).expect("sorted");
    }
    writer.finish().expect("the same");
}

fn most(info: AllocationInfo) -> u64 {
    info.bytes_max
}

/// 64 KiB for trees of three levels of 4 KiB pages, of a file of 50 MB.
const BYTES_MAX: u64 = 64 << 10;

#[test]
fn writing_holds_a_page_for_each_level() {
    for (count, value_bytes) in [(200_000, 256), (500, 100_000)] {
        let value = vec![b'v'; value_bytes];
        let mut layout = None;
        let measured = measure(|| layout = Some(measure_file(count, value_bytes)));
        let layout = layout.expect("measured");
        assert!(layout.bytes() > 50_000_000, "{} bytes", layout.bytes());
        assert!(most(measured) < BYTES_MAX, "measuring: {measured:?}");
        let written = measure(|| write_file(io::sink(), layout, count, &value));
        assert!(most(written) < BYTES_MAX, "writing: {written:?}");
    }
}

#[test]
fn reading_holds_a_page_for_each_level_and_an_item() {
    for (count, value_bytes) in [(200_000, 256), (500, 100_000)] {
        let value = vec![b'v'; value_bytes];
        let layout = measure_file(count, value_bytes);
        let mut file = tempfile::tempfile().expect("a temporary file");
        write_file(io::BufWriter::new(&mut file), layout, count, &value);
        let read = measure(|| assert_eq!(read_file(&file), u64::from(count)));
        assert!(
            most(read) < BYTES_MAX + 2 * value_bytes as u64,
            "reading: {read:?}"
        );
        let checked = measure(|| {
            let image = Image::open(&file as &File).expect("opens");
            image.check().expect("no fault");
        });
        assert!(most(checked) < BYTES_MAX, "checking: {checked:?}");
        let hashed = measure(|| {
            let image = Image::open(&file as &File).expect("opens");
            image.verify_hash().expect("the right hash");
        });
        assert!(most(hashed) < 300 << 10, "hashing: {hashed:?}");
    }
}

fn read_file(file: &File) -> u64 {
    let image = Image::open(file).expect("opens");
    let bucket = image.bucket(b"key").expect("reads").expect("exists");
    bucket.items().fold(0, |count, item| {
        item.expect("no fault");
        count + 1
    })
}

#[test]
fn opening_and_checking_a_small_file_is_cheap() {
    let contents = Contents::from([(b"b".to_vec(), numbered(10, 10))]);
    let file = write(&contents, 4_096);
    let checked = measure(|| {
        let image = Image::open(&file).expect("opens");
        image.check().expect("no fault");
    });
    assert!(most(checked) < 32 << 10, "{checked:?}");
}
