"""Data modules: the embedded sample and any own folder of pictures. Depends on nothing above it."""

from mobilemamba.data.base import ImageDataModule
from mobilemamba.data.fashion_mnist import FashionMNISTSample
from mobilemamba.data.image_folder import ImageFolder

__all__ = ["FashionMNISTSample", "ImageDataModule", "ImageFolder"]
