//! Carina volumes on LVM2.
