// Press Run, then type a name in the output panel.
#include <iostream>
#include <string>

int main() {
    std::cout << "What is your name? " << std::flush;
    std::string name;
    std::getline(std::cin, name);
    std::cout << "Hello, " << (name.empty() ? "world" : name) << "!\n";
}
