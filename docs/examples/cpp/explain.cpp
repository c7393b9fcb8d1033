// Runs an explainer that fxgrad exported as .aoti: no Python, no autograd, no fxgrad.
//
//     explain EXPLAINER.aoti INPUT.f32 CHANNELS HEIGHT WIDTH [TARGET] > map.pgm
//
// INPUT.f32 has the model's normalized input as raw float32 numbers, channels first. Without a target the likeliest
// class is explained. The map is written as a grey picture: light speaks for the class, dark against it.

#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/torch.h>

#include <cstdlib>
#include <fstream>
#include <iostream>
#include <string>
#include <vector>

namespace {

torch::Tensor input_of(const char* path, const std::vector<int64_t>& shape) {
  torch::Tensor x = torch::empty(shape);
  std::ifstream file(path, std::ios::binary);
  file.read(static_cast<char*>(x.data_ptr()), static_cast<std::streamsize>(x.nbytes()));
  if (file.gcount() != static_cast<std::streamsize>(x.nbytes()) || file.peek() != EOF)
    throw std::runtime_error(std::string(path) + " does not have " + std::to_string(x.numel()) + " float32 numbers");
  return x;
}

void write_pgm(const torch::Tensor& map) {
  const torch::Tensor grey = (map / map.abs().max().clamp_min(1e-30) * 127 + 128).round().to(torch::kUInt8).contiguous();
  std::cout << "P5\n" << grey.size(1) << " " << grey.size(0) << "\n255\n";
  std::cout.write(static_cast<const char*>(grey.data_ptr()), static_cast<std::streamsize>(grey.numel()));
}

}  // namespace

int main(int count, char** given) {
  if (count < 6 || count > 7) {
    std::cerr << "usage: explain EXPLAINER.aoti INPUT.f32 CHANNELS HEIGHT WIDTH [TARGET] > map.pgm\n";
    return 2;
  }
  // The compiled program reads memory as it was told to; with this it first checks dtypes, sizes and strides.
  setenv("AOTI_RUNTIME_CHECK_INPUTS", "1", 1);
  try {
    const c10::InferenceMode mode;
    torch::inductor::AOTIModelPackageLoader explainer(given[1]);
    const torch::Tensor x = input_of(given[2], {1, std::stoll(given[3]), std::stoll(given[4]), std::stoll(given[5])});
    int64_t target = count == 7 ? std::stoll(given[6]) : 0;
    std::vector<torch::Tensor> found = explainer.run({x, torch::tensor({target})});
    if (count < 7) {
      target = found[0].argmax(1).item<int64_t>();
      found = explainer.run({x, torch::tensor({target})});
    }
    std::cerr << explainer.get_metadata()["policy"] << ": class " << target << ", logit "
              << found[0][0][target].item<double>();
    if (found.size() > 2) std::cerr << ", completeness error " << found[2][0].item<double>();
    std::cerr << "\n";
    write_pgm(found[1][0]);
  } catch (const std::exception& error) {
    std::cerr << "explain: " << std::string(error.what()).substr(0, std::string(error.what()).find('\n')) << "\n";
    return 1;
  }
}
