//! Carina volumes on raw disks and partitions.
