"""Tests of stacked/registry."""
