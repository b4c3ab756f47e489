"""All data modules, for :mod:`mobilemamba.data` to offer; importing it loads Lightning."""

from mobilemamba.data.base import DataModule
from mobilemamba.data.classification import ImageDataModule
from mobilemamba.data.fashion_mnist import FashionMNISTSample
from mobilemamba.data.image_folder import ImageFolder
from mobilemamba.data.imagenet import ImageNet

__all__ = ["DataModule", "FashionMNISTSample", "ImageDataModule", "ImageFolder", "ImageNet"]
