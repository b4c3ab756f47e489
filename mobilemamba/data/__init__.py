"""Data modules: the embedded sample, ImageNet-1k, and any own folder of pictures. Depends on nothing above it."""

from mobilemamba.data.base import ImageDataModule
from mobilemamba.data.fashion_mnist import FashionMNISTSample
from mobilemamba.data.image_folder import ImageFolder
from mobilemamba.data.imagenet import ImageNet
from mobilemamba.data.sampling import IGNORED

__all__ = ["IGNORED", "FashionMNISTSample", "ImageDataModule", "ImageFolder", "ImageNet"]
